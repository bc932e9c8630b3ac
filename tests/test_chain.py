"""Models of dense layers alone, which are compiled into one: the same bits as their layers one by one."""

from __future__ import annotations

import copy
import itertools
import threading
from typing import Any

import numpy as np
import pytest

import steepest as sp
from steepest import _core, nn
from steepest.train import Trainer

CLASSES = 5
MODELS: dict[str, Any] = {
    "one layer": lambda: [nn.Dense(CLASSES)],
    "more inputs than units": lambda: [nn.Dense(24), nn.ReLU(), nn.Dense(CLASSES)],
    "more units than inputs": lambda: [nn.Dense(300), nn.Tanh(), nn.Dense(40), nn.LeakyReLU(0.1), nn.Dense(CLASSES)],
    "no biases": lambda: [nn.Dense(9, bias=False), nn.Sigmoid(), nn.Dense(CLASSES, bias=False)],
    "an activation last": lambda: [nn.Dense(9), nn.Dense(CLASSES), nn.Tanh()],
}
OPTIONS: dict[str, Any] = {
    "AdamW": {},
    "SGD": {"momentum": 0.9, "nesterov": True},
    "RMSprop": {"centered": True},
    "Adagrad": {},
    "NAdam": {},
    "Lion": {},
    "Momentum": {},
}
LIMITS: dict[str, Any] = {
    "none": {},
    "max_norm": {"max_norm": 0.1},
    "nonfinite": {"nonfinite": "skip"},
    "8bit": {"state_dtype": "8bit"},
}


def pair(layers: Any, inputs: int, dtype: Any = np.float32, frozen: int = 0) -> tuple[nn.Sequential, nn.Sequential]:
    """The model, and the same one that goes layer by layer."""
    models = [nn.Sequential(layers(), inputs, seed=1, dtype=dtype) for _ in range(2)]
    for model in models:
        model.freeze(frozen)
    assert models[0]._chain is not None
    models[1]._chain = None
    return models[0], models[1]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layers", MODELS)
def test_outputs_and_gradients_are_those_of_the_layers(layers: str, dtype: Any, threads: int) -> None:
    ours, theirs = pair(MODELS[layers], 70, dtype)
    sp.set_num_threads(threads)
    rng = np.random.default_rng(0)
    for rows in (33, 7, 60, 1, 33, 0):
        x, grad = rng.normal(size=(rows, 70)).astype(dtype), rng.normal(size=(rows, CLASSES)).astype(dtype)
        assert ours.forward(x, train=True).tobytes() == theirs.forward(x, train=True).tobytes()
        assert ours.late_gradient is not None and theirs.late_gradient is None
        for model in (ours, theirs):
            model.grads.fill(np.nan)
            assert model.backward(grad.copy()) is None
        assert ours.grads.tobytes() == theirs.grads.tobytes()
        assert np.isfinite(ours.grads).all()


@pytest.mark.parametrize("frozen", [1, 2, 3])
def test_frozen_layers_get_no_gradients(frozen: int) -> None:
    ours, theirs = pair(MODELS["more units than inputs"], 12, frozen=frozen)
    x = np.random.default_rng(0).normal(size=(20, 12)).astype(np.float32)
    for model in (ours, theirs):
        model.backward(model.forward(x, train=True).copy())
    assert ours.grads.tobytes() == theirs.grads.tobytes()
    assert (ours.layers[0].grads["weight"] == 0).all()


def test_other_models_and_larger_products_go_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = nn.Dense(4), nn.ReLU(), nn.Dense(2)
    assert nn.Sequential([nn.Dropout(0.5), *dense], 3)._chain is None
    assert nn.Sequential([nn.ReLU()], 3)._chain is None
    frozen = nn.Sequential([nn.Dense(2)], 3)
    frozen.freeze(1)
    assert frozen._chain is None
    monkeypatch.setattr(nn.layers, "SMALL_WORK", 4 * 3 * 10)
    model = nn.Sequential([nn.Dense(4), nn.ReLU(), nn.Dense(2)], 3)
    for rows, chained in ((10, True), (11, False), (10, True)):
        model.backward(model.forward(np.ones((rows, 3), np.float32), train=True).copy())
        assert (model.late_gradient is not None) == chained


@pytest.mark.parametrize(
    ("kind", "limit", "accumulate"),
    [*itertools.product(OPTIONS, ["none"], [1]), *itertools.product(["AdamW"], LIMITS, [1, 3])],
)
@pytest.mark.parametrize("layers", ["one layer", "more inputs than units", "more units than inputs"])
def test_training_gives_the_bits_of_gradients_first_and_steps_then(
    layers: str, kind: str, limit: str, accumulate: int
) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 400)).astype(np.float32)  # its first gradient is shared in several blocks
    y = rng.integers(0, CLASSES, 100)
    models = pair(MODELS[layers], 400)
    for model in models:
        optimizer = getattr(sp, kind)(model.param_groups(), lr=1e-2, **OPTIONS[kind], **LIMITS[limit])
        trainer = Trainer(model, sp.losses.softmax_cross_entropy, optimizer)
        trainer.fit(x, y, batch_size=32, epochs=2, verbose=False, accumulate=accumulate)
    assert models[0].params.tobytes() == models[1].params.tobytes()
    assert models[0].grads.tobytes() == models[1].grads.tobytes()


def test_a_mask_holds_in_a_step_that_computes_its_gradient() -> None:
    models = pair(MODELS["more inputs than units"], 50)
    x, y = np.random.default_rng(0).normal(size=(32, 50)).astype(np.float32), np.arange(32) % CLASSES
    for model in models:
        optimizer = sp.Adam(model.param_groups())
        keep = np.arange(optimizer.param_groups[0]["params"].size) % 3 > 0
        optimizer.set_masks([keep, None])
        Trainer(model, sp.losses.softmax_cross_entropy, optimizer).fit(x, y, epochs=3, verbose=False)
        assert (optimizer.param_groups[0]["params"][~keep] == 0).all()
    assert models[0].params.tobytes() == models[1].params.tobytes()


def test_an_optimizer_of_other_arrays_has_the_late_gradient_computed_all_the_same() -> None:
    ours, theirs = pair(MODELS["more inputs than units"], 50)
    x = np.random.default_rng(0).normal(size=(32, 50)).astype(np.float32)
    w = np.ones(3, np.float32)
    for model in (ours, theirs):
        grad = model.forward(x, train=True).copy()
        model.backward(grad, late=True)
    sp.SGD(w, lr=1.0).step(np.ones(3, np.float32), 1.0, ours.late_gradient)
    assert (w == 0).all()
    assert ours.grads.tobytes() == theirs.grads.tobytes()


def test_a_step_of_ones_own_finds_all_gradients() -> None:
    class Halved(sp.SGD):
        def step(self, grads: Any, grad_scale: float = 1.0) -> None:  # type: ignore[override]
            super().step(grads, grad_scale / 2)

    x, y = np.random.default_rng(0).normal(size=(32, 50)).astype(np.float32), np.arange(32) % CLASSES
    models = pair(MODELS["more inputs than units"], 50)
    optimizers = Halved(models[0].param_groups(), lr=0.5), sp.SGD(models[1].param_groups(), lr=0.25)
    for model, optimizer in zip(models, optimizers, strict=True):
        Trainer(model, sp.losses.softmax_cross_entropy, optimizer).fit(x, y, epochs=3, verbose=False)
    assert models[0].params.tobytes() == models[1].params.tobytes()


def test_a_copied_model_has_arrays_of_its_own() -> None:
    model = nn.Sequential(MODELS["more inputs than units"](), 6)
    x = np.ones((2, 6), np.float32)
    outputs = model.forward(x).copy()
    other = copy.deepcopy(model)
    other.params.fill(0)
    assert (other.forward(x) == 0).all()
    assert (model.forward(x) == outputs).all()


def chain(first: int = 0, **changed: Any) -> Any:
    arrays = {
        "weight": np.ones((3, 2), np.float32),
        "bias": np.zeros(2, np.float32),
        "activation": "relu",
        "alpha": 0.0,
        "dweight": np.zeros((3, 2), np.float32),
        "dbias": np.zeros(2, np.float32),
    }
    return _core.Chain([tuple((arrays | changed).values())], first)


def test_what_does_not_fit_is_refused_by_name() -> None:
    x = np.ones((4, 3), np.float32)
    with pytest.raises(ValueError, match="grad: expected forward"):
        chain().backward(x)
    for bad, error in (
        (x.astype(np.float64), TypeError),
        (x[:, :2].copy(), ValueError),
        (np.asfortranarray(x), ValueError),
        (x[0], ValueError),
    ):
        with pytest.raises(error, match=r"^x: "):
            chain().forward(bad)
    made = chain()
    y = made.forward(x)
    for bad, error in ((np.ones((4, 2)), TypeError), (np.ones((3, 2), np.float32), ValueError), (y, ValueError)):
        with pytest.raises(error, match=r"^grad: "):
            made.backward(bad)
    square = chain(weight=np.ones((2, 2), np.float32), dweight=np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match=r"^x: "):
        square.forward(square.forward(np.ones((4, 2), np.float32)))
    for changed in (
        {"weight": np.ones((3, 2))},
        {"weight": np.ones(3, np.float32)},
        {"dweight": np.zeros((2, 3), np.float32)},
        {"bias": np.zeros(3, np.float32)},
        {"dbias": None},
        {"activation": "swish"},
    ):
        with pytest.raises((TypeError, ValueError)):
            chain(**changed)
    with pytest.raises(ValueError, match="layers: expected one that trains"):
        chain(first=1)
    with pytest.raises((TypeError, RuntimeError)):
        sp.SGD(np.ones(2), lr=1.0).step(np.ones(2), 1.0, "late")  # type: ignore[arg-type]


def test_threads_that_share_a_model_do_not_crash() -> None:
    model = nn.Sequential([nn.Dense(256), nn.ReLU(), nn.Dense(CLASSES)], 512)
    errors: list[Exception] = []

    def work(rows: int) -> None:
        x = np.ones((rows, 512), np.float32)
        for _ in range(30):
            try:
                model.backward(model.forward(x, train=True).copy())
            except ValueError:  # the other's batch has other rows
                pass
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=work, args=(rows,)) for rows in (40, 64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
