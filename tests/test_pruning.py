"""Pruning: which weights go, that they stay away, and that cutting dead units out changes no prediction."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import steepest as sp
from steepest import cli, compress, nn
from steepest.callbacks import Callback, EarlyStopping
from steepest.train import Trainer


def dense(seed: int = 0) -> nn.Sequential:
    layers = [nn.Dense(12), nn.ReLU(), nn.Dense(8, bias=False), nn.Tanh(), nn.Dropout(0.5), nn.Dense(3)]
    return shaken(nn.Sequential(layers, input_shape=6, seed=seed))


def images(activation: Callable[[], Any] = nn.ReLU, padding: Any = "valid") -> nn.Sequential:
    layers = [
        *(nn.Conv2D(6, 3, padding="same"), activation(), nn.MaxPool2D(2, padding="same")),
        *(nn.Conv2D(5, (2, 3), padding=padding), activation(), nn.AvgPool2D(2)),
        *(nn.Flatten(), nn.Dropout(0.2), nn.Dense(9), activation(), nn.Dense(4)),
    ]
    return shaken(nn.Sequential(layers, input_shape=(11, 12, 2)))


def shaken(model: nn.Sequential) -> nn.Sequential:
    """With biases that are not zero."""
    rng = np.random.default_rng(5)
    model.params[...] += 0.1 * rng.standard_normal(model.params.size).astype(model.dtype)
    return model


def zeros(model: nn.Sequential) -> dict[int, int]:
    return {i: int((layer.params["weight"] == 0).sum()) for i, layer in enumerate(model.layers) if layer.declared}


def data(model: nn.Sequential, n: int = 96) -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    return rng.standard_normal((n, *model.input_shape)).astype(np.float32), rng.integers(0, 3, n)


def trainer_of(model: nn.Sequential, rule: Any = sp.AdamW) -> Trainer:
    return Trainer(model, sp.losses.softmax_cross_entropy, rule(model.param_groups(), lr=0.01))


# ---------------------------------------------------------------------------------------------
# Which weights


@pytest.mark.parametrize("method", ["random", "magnitude", "l1", "l2", 3, math.inf])
@pytest.mark.parametrize("amount", [0.0, 0.25, 0.8, 1.0, 0, 7])
def test_each_layer_loses_its_amount_and_nothing_else_changes(method: Any, amount: Any) -> None:
    model, before = dense(), dense()
    pruning = compress.prune(model, amount, method=method, scope="layer")
    sizes = {0: 72, 2: 96, 5: 24}
    assert zeros(model) == {i: amount if isinstance(amount, int) else round(amount * n) for i, n in sizes.items()}
    assert pruning.sparsity == sum(zeros(model).values()) / 192
    kept = model.params != 0
    assert model.params[kept].tobytes() == before.params[kept].tobytes()
    for name, p in model.named_parameters().items():
        w: Any = before.named_parameters()[name]
        mask: Any = pruning.masks.get(name, np.ones(p.shape, bool))
        assert np.array_equal(mask, p != 0) and (mask.all() or name.endswith("weight"))
        if method != "random" and not mask.all() and mask.any():
            assert np.abs(w[~mask]).max() <= np.abs(w[mask]).min()


def test_random_pruning_follows_its_seed() -> None:
    one, same, other = (dense() for _ in range(3))
    for model, seed in ((one, 1), (same, 1), (other, 2)):
        compress.prune(model, 0.5, method="random", seed=seed)
    assert np.array_equal(one.params, same.params) and not np.array_equal(one.params, other.params)


def test_the_scope_of_weights_is_global_and_ranks_all_layers_together_and_layers_choose() -> None:
    model, before = dense(), dense()
    compress.prune(model, 0.5, layers=[0, 2])
    w = np.concatenate([before.layers[i].params["weight"].ravel() for i in (0, 2)])
    left = np.concatenate([model.layers[i].params["weight"].ravel() for i in (0, 2)])
    assert (left == 0).sum() == 84 and np.abs(w[left == 0]).max() <= np.abs(w[left != 0]).min()
    assert zeros(model)[5] == 0
    compress.prune(model, {0: 0.9, 5: 3})
    assert (zeros(model)[0], zeros(model)[5]) == (65, 3)


def test_of_equals_the_first_go_and_nan_is_the_largest() -> None:
    model = nn.Sequential([nn.Dense(4)], input_shape=2)
    w: Any = model.layers[0].params["weight"]
    w[...] = [[1, -1, np.nan, 1], [2, 1, 0.5, -1]]
    compress.prune(model, 4)
    assert np.array_equal(w, np.array([[0, 0, np.nan, 0], [2, 1, 0, -1]]), equal_nan=True)


@pytest.mark.parametrize(("method", "n"), [("l1", 1), ("l2", 2), (3.0, 3), (math.inf, math.inf)])
def test_units_go_by_the_norm_of_their_inputs_with_their_bias(method: Any, n: float) -> None:
    model, before = images(), images()
    compress.prune(model, 0.5, method=method, structured=True)
    for i, count in ((0, 3), (3, 2), (8, 4)):
        w, b = (before.layers[i].params[name] for name in ("weight", "bias"))
        dead: Any = ~model.layers[i].params["weight"].reshape(-1, w.shape[-1]).any(axis=0)
        norms = np.linalg.norm(w.reshape(-1, w.shape[-1]).astype(float), n, axis=0)
        assert dead.sum() == count and norms[dead].max() < norms[~dead].min()
        assert np.array_equal(model.layers[i].params["bias"], np.where(dead, 0, b))
    assert np.array_equal(model.layers[10].params["weight"], before.layers[10].params["weight"])


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"amount": 1.5, "scope": "layer"},
        ValueError,
        "fraction from 0.0 to 1.0, .* 72 .weights of layer 0., got 1.5",
    ),
    ({"amount": -0.1}, ValueError, "got -0.1"),
    ({"amount": math.nan}, ValueError, "got nan"),
    ({"amount": 73, "scope": "layer"}, ValueError, "count from 0 to 72 .weights of layer 0., got 73"),
    ({"amount": 25, "scope": "layer"}, ValueError, "count from 0 to 24 .weights of layer 5., got 25"),
    ({"amount": -1}, ValueError, "got -1"),
    ({"amount": True}, TypeError, "amount: expected a number, .*got bool"),
    ({"amount": "0.5"}, TypeError, "got str"),
    ({"amount": 193}, ValueError, "count from 0 to 192 .weights of all layers., got 193"),
    ({"amount": {1: 0.5}}, ValueError, r"layers: expected some of \[0, 2, 5\], the layers with weights, got \[1\]"),
    ({"layers": [7]}, ValueError, r"got \[7\]"),
    ({"layers": []}, ValueError, r"got \[\]"),
    ({"layers": [5], "structured": True}, ValueError, r"some of \[0, 2\], the layers whose units can be cut out"),
    ({"amount": 1.0, "structured": True}, ValueError, "expected to leave a unit of layer 0, got all 12"),
    ({"amount": 20, "structured": True, "scope": "global"}, ValueError, "expected to leave a unit"),
    ({"amount": 0.01, "every": 0}, ValueError, "every: expected a number of steps"),
    ({"method": "l3"}, ValueError, "method: expected 'random', 'magnitude'"),
    ({"method": 0.5}, ValueError, "or a number n >= 1, got 0.5"),
    ({"scope": "model"}, ValueError, "scope: expected 'layer'"),
    ({"amount": {0: 0.5}, "scope": "global"}, ValueError, "scope: expected 'layer'"),
]


@pytest.mark.parametrize(("options", "error", "words"), BAD)
def test_what_does_not_fit_is_refused_and_changes_nothing(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    model = dense()
    model.layers[2].params["weight"][...] *= 0.01  # with the global scope it would lose all its units
    before = model.params.copy()
    with pytest.raises(error, match=words):
        compress.prune(model, **{"amount": 0.5, **options})
    assert model.params.tobytes() == before.tobytes()


def test_models_without_weights_and_other_things_are_refused() -> None:
    with pytest.raises(TypeError, match=r"model: expected an nn.Sequential, got list"):
        compress.prune([], 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layers: expected some of"):
        compress.prune(nn.Sequential([nn.ReLU()], input_shape=3), 0.5)
    with pytest.raises(ValueError, match="layers whose units can be cut out"):
        compress.prune(nn.Sequential([nn.Dense(3)], input_shape=3), 0.5, structured=True)


# ---------------------------------------------------------------------------------------------
# While training


class Watch(Callback):
    """Notes the sparsity after every batch."""

    def __init__(self, pruning: compress.Pruning) -> None:
        self.pruning, self.seen = pruning, list[float]()

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        self.seen.append(self.pruning.sparsity)


@pytest.mark.parametrize("rule", [sp.SGD, sp.AdamW, sp.Lion])
def test_what_is_pruned_stays_zero_until_remove(rule: Any) -> None:
    model = dense()
    trainer = trainer_of(model, rule)
    pruning = compress.prune(model, 0.75)
    watch = Watch(pruning)
    trainer.fit(*data(model), epochs=3, callbacks=[pruning, watch], verbose=False)
    assert set(watch.seen) == {0.75}
    assert not np.signbit(model.params[model.params == 0]).any()
    pruning.remove()
    assert pruning.sparsity == 0.75 and pruning.masks == {}
    assert all(np.all(mask) for mask in trainer.optimizer.masks if mask is not None)
    trainer.fit(*data(model), epochs=1, callbacks=[pruning], verbose=False)
    assert pruning.sparsity < 0.5  # what is left is of units that ReLU silences


def test_a_loop_of_ones_own_keeps_an_optimizer_pruned() -> None:
    model = dense()
    optimizer = sp.Adam({"w": model.layers[0].params["weight"], "b": model.layers[0].params["bias"]})
    pruning = compress.prune(model, 0.5, layers=[0])
    pruning.keep(optimizer)
    optimizer.step({"w": np.ones((6, 12), np.float32), "b": np.ones(12, np.float32)})
    assert np.array_equal(model.layers[0].params["weight"] != 0, pruning.masks["0.weight"])


def test_gradual_pruning_follows_its_schedule_and_never_goes_back() -> None:
    model = dense()
    schedule = compress.cubic(0.75, steps=20, begin=4)
    pruning = compress.prune(model, schedule, every=4)
    watch = Watch(pruning)
    assert pruning.sparsity == 0
    trainer_of(model).fit(*data(model), batch_size=16, epochs=5, callbacks=[pruning, watch], verbose=False)
    due = [schedule((step // 4) * 4) for step in range(1, 31)]
    assert watch.seen == pytest.approx(due, abs=0.01) and watch.seen[-1] == 0.75
    assert watch.seen == sorted(watch.seen)


def test_gradual_pruning_counts_optimizer_steps() -> None:
    model = dense()
    pruning = compress.prune(model, lambda step: min(step, 6) / 12, every=2)
    trainer = trainer_of(model)
    trainer.optimizer.step(trainer.model.gradients())
    trainer.fit(*data(model), batch_size=16, epochs=1, accumulate=2, callbacks=[pruning], verbose=False)
    assert trainer.optimizer.steps == 4 and pruning.sparsity == pytest.approx(2 / 12, abs=0.01)


def test_weights_that_early_stopping_puts_back_are_masked_again() -> None:
    model = dense()
    x, y = data(model)
    pruning = compress.prune(model, compress.cubic(0.75, steps=12), every=6)
    stopping = EarlyStopping("loss", mode="max", patience=5)  # the first epoch is the best
    trainer_of(model).fit(x, y, batch_size=16, epochs=3, callbacks=[stopping, pruning], verbose=False)
    assert pruning.sparsity == 0.75


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    def run(path: Path | None, start: int, epochs: int) -> tuple[nn.Sequential, Trainer, compress.Pruning]:
        model = dense()
        trainer = trainer_of(model)
        pruning = compress.prune(model, compress.cubic(0.75, steps=16), every=3, method="random")
        if start:
            assert path is not None
            sp.load_into(path, model, optimizer=trainer.optimizer, callbacks=[pruning])
        options: Any = {"batch_size": 16, "epochs": epochs, "initial_epoch": start, "verbose": False}
        trainer.fit(*data(model), callbacks=[pruning], **options)
        return model, trainer, pruning

    whole, _, _ = run(None, 0, 4)
    first, trainer, pruning = run(None, 0, 2)
    sp.save(tmp_path / "m.safetensors", first, optimizer=trainer.optimizer, callbacks=[pruning])
    second, trainer, pruning = run(tmp_path / "m.safetensors", 2, 4)
    assert second.params.tobytes() == whole.params.tobytes()
    assert pruning.sparsity == 0.75
    other = compress.prune(images(), 0.5)
    with pytest.raises(ValueError, match="expected a mask of"):
        other.set_state(pruning.get_state())


def test_one_pruning_of_the_trained_model() -> None:
    model = dense()
    prunings = [compress.prune(model, 0.5, layers=[i]) for i in (0, 2)]
    with pytest.raises(ValueError, match="expected one Pruning, got more; its amount may be a mapping"):
        trainer_of(model).fit(*data(model), callbacks=prunings, verbose=False)
    with pytest.raises(ValueError, match="expected the model that it prunes"):
        trainer_of(dense()).fit(*data(model), callbacks=prunings[:1], verbose=False)


@pytest.mark.parametrize("bad", [{"amount": 1.1}, {"steps": 0}, {"begin": -1}, {"initial": 0.9}, {"initial": math.nan}])
def test_a_cubic_schedule_out_of_range(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected 0 <= initial <= amount <= 1"):
        compress.cubic(**{"amount": 0.8, "steps": 5, **bad})


# ---------------------------------------------------------------------------------------------
# Cutting out


def assert_same_outputs(small: nn.Sequential, model: nn.Sequential) -> None:
    x = np.random.default_rng(3).standard_normal((40, *model.input_shape))
    y, expected = small.forward(x).copy(), model.forward(x)
    assert np.abs(y - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("make", "units"),
    [
        (dense, [6, 4, 3]),
        (images, [3, 3, 5, 4]),
        (lambda: images(nn.Tanh, "same"), [3, 3, 5, 4]),
    ],
    ids=["dense", "images", "tanh"],
)
def test_pruned_units_are_cut_out(make: Callable[[], nn.Sequential], units: list[int]) -> None:
    model = make()
    model.freeze(1)
    compress.prune(model, 0.5, structured=True)
    before = model.params.copy()
    small = compress.shrink(model)
    layers: list[Any] = [layer for layer in small.layers if layer.declared]
    assert [layer.params["weight"].shape[-1] for layer in layers] == units
    assert small.frozen == 1 and small.random_state == model.random_state
    assert_same_outputs(small, model)
    assert model.params.tobytes() == before.tobytes()
    trainer_of(small).fit(*data(model), epochs=1, verbose=False)
    with pytest.raises(ValueError, match="expected dead units"):
        compress.shrink(small)


def test_what_dead_units_give_moves_into_the_next_bias() -> None:
    model = images(nn.Sigmoid)
    for i in (3, 8):
        model.layers[i].params["weight"][..., :2] = 0
    model.layers[0].params["weight"][..., 4] = 0
    small = compress.shrink(model)
    assert [layer.declared["weight"].shape[-1] for layer in small.layers if layer.declared] == [5, 3, 7, 4]
    assert_same_outputs(small, model)


def test_a_constant_that_cannot_move_stays() -> None:
    padded = images(nn.Sigmoid, "same")
    padded.layers[0].params["weight"][..., :2] = 0
    with pytest.raises(ValueError, match="expected dead units to cut out, got none"):
        compress.shrink(padded)
    unbiased = dense()
    unbiased.layers[0].params["weight"][:, :3] = 0
    unbiased.layers[0].params["bias"][:3] = [1, -1, 0]  # ReLU makes 0 of the second
    small = compress.shrink(unbiased)
    assert small.layers[0].declared["weight"].shape == (6, 10)
    assert_same_outputs(small, unbiased)


def test_units_that_nothing_takes_go_and_one_stays() -> None:
    model = dense()
    model.layers[5].params["weight"][:, :] = 0
    small = compress.shrink(model)
    assert [layer.declared["weight"].shape for layer in small.layers if layer.declared] == [(6, 12), (12, 1), (1, 3)]
    assert_same_outputs(small, model)


def test_what_cannot_be_followed_is_not_cut() -> None:
    layers = [nn.Dense(16), nn.Reshape((4, 4, 1)), nn.Conv2D(2, 3), nn.Flatten(), nn.Dense(2)]
    model = nn.Sequential(layers, input_shape=3)
    with pytest.raises(ValueError, match=r"layers: expected some of \[2\]"):
        compress.prune(model, 0.5, structured=True, layers=[0])
    compress.prune(model, 0.5, structured=True)
    assert_same_outputs(compress.shrink(model), model)
    with pytest.raises(TypeError, match=r"expected an nn.Sequential"):
        compress.shrink(None)  # type: ignore[arg-type]


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.floats(0.3, 0.95), st.booleans())
def test_any_dead_units_are_cut_out_with_the_same_outputs(seed: int, share: float, sigmoid: bool) -> None:
    rng = np.random.default_rng(seed)
    model = copy.deepcopy(images(nn.Sigmoid if sigmoid else nn.ReLU))
    for i in (0, 3, 8):
        model.layers[i].params["weight"][..., rng.random(model.layers[i].declared["bias"].shape) < share] = 0
    model.layers[10].params["weight"][rng.random(9) < share] = 0
    try:
        small = compress.shrink(model)
    except ValueError:
        return
    assert small.params.size < model.params.size
    assert_same_outputs(small, model)


# ---------------------------------------------------------------------------------------------
# The command line


def test_steepest_compress_prunes_cuts_and_quantises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = str(tmp_path / "m.safetensors"), str(tmp_path / "small.safetensors")
    assert cli.main(["train", "--epochs", "2", "--hidden", "16", "--out", model]) == 0
    command = ["compress", model, "--out", out, "--prune"]
    assert cli.main([*command, "magnitude", "--amount", "0.8", "--epochs", "2"]) == 0
    assert "0.8 of the weights, magnitude, 80.0% zeros; trained on for 2 epochs" in capsys.readouterr().out
    weights = [p for name, p in sp.load(out).model.named_parameters().items() if name.endswith("weight")]
    assert sum(int((w == 0).sum()) for w in weights) == round(0.8 * sum(w.size for w in weights))
    assert cli.main([*command, "l2", "--units", "--amount", "0.5", "--quantize"]) == 0
    assert compress.load(out).model.layers[0].weight.shape == (64, 8)  # type: ignore[attr-defined]
    assert cli.main(["evaluate", out, "digits"]) == 0
    kept = Path(out).read_bytes()
    assert cli.main([*command, "l2", "--units", "--amount", "1"]) == 2
    assert ": --amount: expected to leave a unit of layer 0" in capsys.readouterr().err
    assert Path(out).read_bytes() == kept
