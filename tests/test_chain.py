"""Models of dense layers alone, which are compiled into one: the same bits as their layers one by one."""

from __future__ import annotations

import copy
import functools
import io
import threading
from typing import Any

import numpy as np
import pytest

import steepest as sp
from steepest import _core, nn, reference
from steepest.callbacks import Callback, ProgressBar
from steepest.train import Trainer

CLASSES = 5
MODELS: dict[str, Any] = {
    "one layer": lambda: [nn.Dense(CLASSES)],
    "more inputs than units": lambda: [nn.Dense(24), nn.ReLU(), nn.Dense(CLASSES)],
    "more units than inputs": lambda: [nn.Dense(300), nn.Tanh(), nn.Dense(40), nn.LeakyReLU(0.1), nn.Dense(CLASSES)],
    "no biases": lambda: [nn.Dense(9, bias=False), nn.Sigmoid(), nn.Dense(CLASSES, bias=False)],
    "an activation last": lambda: [nn.Dense(9), nn.Dense(CLASSES), nn.Tanh()],
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
        assert ours._is_chained and not theirs._is_chained
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
        assert model._is_chained == chained


@pytest.mark.parametrize("chained", [True, False])
def test_large_products_of_mostly_zeros_are_our_own(chained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, grad = rng.normal(size=(30, 700)).astype(np.float32), rng.normal(size=(30, 3)).astype(np.float32)
    x[rng.random(x.shape) < 0.9] = 0
    model = nn.Sequential([nn.Dense(40), nn.ReLU(), nn.Dense(3)], 700)
    runs = []
    for small_work in (nn.layers.SMALL_WORK, 40 * 3 * 30):
        monkeypatch.setattr(nn.layers, "SMALL_WORK", small_work)
        model = nn.Sequential([nn.Dense(40), nn.ReLU(), nn.Dense(3)], 700)
        if not chained:
            model._chain = None
        outputs = model.forward(x, train=True).tobytes()
        model.backward(grad.copy())
        assert model._is_chained == chained
        assert model.layers[0]._is_small or chained  # type: ignore[attr-defined]
        runs.append((outputs, model.grads.tobytes()))
    assert runs[0] == runs[1]
    model.forward(np.ones_like(x), train=True)
    assert not model._is_chained and not model.layers[0]._is_small  # type: ignore[attr-defined]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kinds", [(np.float32, np.float64, np.int16), (np.float64, np.float32, np.uint64), "Bif"])
@pytest.mark.parametrize("loss", [loss.__name__ for loss in sp.losses.COMPILED])
def test_one_call_gives_the_loss_and_gradients_of_three(loss: str, kinds: Any, dtype: Any, threads: int) -> None:
    ours, theirs = pair(MODELS["more inputs than units"], 300, dtype)
    sp.set_num_threads(threads)
    rng = np.random.default_rng(0)
    x = (9 * rng.normal(size=(90, 300))).astype(kinds[0])
    x[::2, 70:] = 0  # batches of mostly zeros, and others
    y = (1.5 * rng.random((90, CLASSES))).astype(kinds[1])
    function = getattr(sp.losses, loss)
    if loss == "softmax_cross_entropy" and kinds[2] != "f":
        y = np.arange(90, dtype=kinds[2]) % CLASSES
    run = ours.backpropagation(function, x, y)
    assert run is not None and theirs.backpropagation(function, x, y) is None
    for rows in (np.arange(40), slice(33), np.arange(0, 90, 2), rng.permutation(90), np.arange(1, 60, 2), slice(3, 3)):
        ours.grads.fill(np.nan)
        value, outputs, targets = run(rows)
        expected = theirs.forward(x[rows], train=True)
        expected_targets = y[rows] if y.ndim == 1 else y[rows].astype(dtype)
        assert outputs.tobytes() == expected.tobytes() and targets.tobytes() == expected_targets.tobytes()
        expected_value, gradient = function(expected, expected_targets)
        theirs.backward(gradient)
        assert value == expected_value and ours.grads.tobytes() == theirs.grads.tobytes()


def test_one_call_is_only_for_what_is_all_compiled() -> None:
    model = nn.Sequential([nn.Dense(4), nn.ReLU(), nn.Dense(3)], 5)
    x, labels, y = np.ones((8, 5), np.float32), np.zeros(8, int), np.zeros((8, 3), np.float32)
    mse = sp.losses.mse
    for some_y in (y, y.astype(bool), labels):
        assert model.backpropagation(sp.losses.softmax_cross_entropy, x, some_y)

    class Halved(nn.Sequential):
        def forward(self, x: Any, train: bool = False) -> Any:
            return super().forward(x, train) / 2

    halved = Halved([nn.Dense(3)], 5)
    for other in (
        halved.backpropagation(mse, x, y),
        model.backpropagation(lambda outputs, targets, **options: mse(outputs, targets, **options), x, y),
        model.backpropagation(mse, x.astype(complex), y),
        model.backpropagation(mse, x.astype(object), y),
        model.backpropagation(mse, np.asfortranarray(x), y),
        model.backpropagation(mse, x[:, :4], y),
        model.backpropagation(mse, x, y.astype("S")),
        model.backpropagation(mse, x, y[:, ::-1]),
        model.backpropagation(mse, x, y.astype(">f4")),
        model.backpropagation(mse, x, np.ma.masked_array(y)),
        model.backpropagation(mse, x.tolist(), y),  # type: ignore[arg-type]
    ):
        assert other is None


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_one_call_leaves_to_numpy_what_forward_does(dtype: Any) -> None:
    model = nn.Sequential([nn.Dense(4), nn.ReLU(), nn.Dense(2)], 30)
    model._chain_rows, model._sparse_rows = 10, 15
    x, y = np.ones((40, 30), dtype), np.zeros((40, 2), np.float32)
    x[20:, 3:] = 0
    run = model.backpropagation(sp.losses.mse, x, y)
    assert run is not None
    for first, n, done in ((0, 10, True), (0, 11, False), (20, 11, True), (20, 15, True), (20, 16, False)):
        for rows in (slice(first, first + n), np.arange(first, first + n)):
            model.grads.fill(7)
            value, outputs, targets = run(rows)
            model.forward(x[rows])
            assert model._is_chained == done == (value is not None) == (not (model.grads == 7).all())
            assert (targets == y[rows]).all() and len(outputs) == n
            assert done or (outputs == x[rows]).all()


def test_one_call_knows_methods_that_were_replaced() -> None:
    class Clipped(nn.Sequential):
        def backward(self, grad: Any) -> Any:
            return super().backward(np.clip(grad, -1e-3, 1e-3, out=grad))

    x, y = np.ones((8, 5), np.float32), np.zeros((8, 3), np.float32)
    assert Clipped([nn.Dense(3)], 5).backpropagation(sp.losses.mse, x, y) is None
    for name in ("forward", "backward"):
        model, calls = nn.Sequential([nn.Dense(3)], 5), list[Any]()
        replaced = getattr(model, name)
        setattr(model, name, lambda *a, replaced=replaced, calls=calls, **k: (calls.append(a), replaced(*a, **k))[1])
        Trainer(model, sp.losses.mse, sp.SGD(model.param_groups(), lr=0.1)).fit(x, y, batch_size=4, verbose=False)
        assert len(calls) == 2


def test_a_callback_may_replace_the_loss_and_go_backward_again() -> None:
    class Replaces(sp.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any) -> None:
            losses.append(logs["loss"])
            if batch == 1:
                self.trainer.loss = sp.losses.mae
            self.trainer.model.backward(np.ones((2, 3), np.float32))

    losses: list[float] = []
    model = nn.Sequential([nn.Dense(3, init=nn.init.zeros)], 5)
    x, y = np.ones((8, 5), np.float32), np.full((8, 3), 3, np.float32)
    trainer = Trainer(model, sp.losses.mse, sp.SGD(model.param_groups(), lr=0.0))
    trainer.fit(x, y, batch_size=2, verbose=False, callbacks=[Replaces()])
    assert losses == [9, 9, 3, 3]


def test_arrays_whose_dtype_was_changed_since_are_not_written_past() -> None:
    model = nn.Sequential([nn.Dense(3)], 5)
    x, labels = np.ones((64, 5), np.float32), np.zeros(64, np.int16)
    run = model.backpropagation(sp.losses.softmax_cross_entropy, x, labels)
    assert run is not None
    _, outputs, targets = run(np.arange(16))
    for array, dtype in ((labels, np.int64), (targets, np.int8), (outputs, np.float16)):
        setattr(array, "dtype", dtype)  # noqa: B010
    _, outputs, targets = run(np.arange(12))
    assert targets.dtype == np.int64 and outputs.dtype == np.float32
    changed: Any = model.forward(x[:40])
    changed.dtype, changed.shape = np.float16, (80, 3)
    assert model.forward(x[:50]).dtype == np.float32


def test_a_loss_that_is_not_finite_leaves_the_gradients() -> None:
    model = nn.Sequential([nn.Dense(2)], 3)
    x, y = np.ones((4, 3), np.float32), np.zeros((4, 2), np.float32)
    x[2, 1] = np.nan
    run: Any = model.backpropagation(sp.losses.mse, x, y)
    model.grads.fill(7)
    assert np.isnan(run(np.arange(4))[0])
    assert (model.grads == 7).all()
    assert np.isfinite(run(np.array([0, 1, 3]))[0])
    assert (model.grads != 7).all()


def test_rows_and_targets_that_do_not_fit_are_refused() -> None:
    model = nn.Sequential([nn.Dense(2)], 3)
    x, labels = np.ones((4, 3), np.float32), np.array([0, 1, 0, 2])
    run: Any = model.backpropagation(sp.losses.softmax_cross_entropy, x, labels)
    for rows, message in ((np.array([4]), "^rows: "), (np.array([-1]), "^rows: "), (np.arange(4), "^labels: .*got 2")):
        with pytest.raises(ValueError, match=message):
            run(rows)
    assert run(np.arange(3)) is not None
    for y in (np.zeros((4, 3), np.float32), np.zeros((3, 2), np.float32)):
        run = model.backpropagation(sp.losses.mse, x, y)
        with pytest.raises(ValueError, match=r"^(target|rows): "):
            run(np.arange(4))
    for other in (3, None, [0, 1], np.arange(2, dtype=np.int32), np.arange(4)[::2]):
        with pytest.raises(TypeError, match=r"^rows: "):
            run(other)
    with pytest.raises(ValueError, match=r"^loss: .*'hinge'"):
        _core.Backpropagation(chain(), x, labels, "hinge", 1, 1)
    with pytest.raises(ValueError, match=r"^x, targets: "):
        _core.Backpropagation(chain(), np.ones(()), labels, "mse", 1, 1)
    with pytest.raises(RuntimeError):
        _core.Backpropagation(model, x, labels, "mse", 1, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"shuffle": False}, {"accumulate": 3}, {"batch_size": None}])
@pytest.mark.parametrize("outputs", [1, 3])
def test_training_by_one_call_gives_the_same_bits(outputs: int, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 8)).astype(np.float32), rng.random(300) < 0.4
    loss = sp.losses.softmax_cross_entropy
    if outputs == 1:
        y, loss = y.astype(np.float32), sp.losses.binary_cross_entropy  # type: ignore[assignment]
    runs = []
    for function in (loss, functools.partial(loss)):  # which is not among those known by name
        model = nn.Sequential([nn.Dense(16), nn.ReLU(), nn.Dense(outputs)], 8)
        trainer = Trainer(model, function, sp.Adam(model.param_groups()), {"mean": lambda y, p: float(np.mean(y))})
        history = trainer.fit(x, y, epochs=3, validation_split=0.3, verbose=False, **options).history
        runs.append((history, model.params.tobytes()))
    assert runs[0] == runs[1]


class Watch(Callback):
    """Does nothing, but sees every batch, for which training leaves compiled code."""

    def on_train_batch_end(self, batch: int, logs: Any) -> None:
        pass


def nan_in(x: Any, row: int) -> Any:
    x = x.copy()
    x[row, 3] = np.nan
    return x


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("options", [{}, {"max_norm": 0.01}, {"lr": sp.schedules.cosine(0.1, 20)}, {"l1": 0.01}])
def test_batches_that_nobody_watches_give_the_same_bits(options: dict[str, Any], shuffle: bool) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(301, 8)), rng.integers(0, 3, 301)
    for some_x in (x, nan_in(x, 0), nan_in(x, 170), nan_in(x, 300)):
        runs = []
        for callbacks in ([], [ProgressBar(file=io.StringIO())], [Watch()]):
            model = nn.Sequential([nn.Dense(16), nn.ReLU(), nn.Dense(3)], 8, dtype=np.float64)
            optimizer = sp.AdamW(model.param_groups(), **options)
            metrics = {"mean": lambda y, p: float(np.mean(y))}
            trainer = Trainer(model, sp.losses.softmax_cross_entropy, optimizer, metrics, nonfinite="skip")
            fit = functools.partial(trainer.fit, callbacks=callbacks, shuffle=shuffle, verbose=False)
            history = fit(some_x, y, epochs=3, validation_split=0.1 if shuffle else 0).history
            runs.append((repr(history), model.params.tobytes(), optimizer.steps))
        assert runs[0] == runs[1] == runs[2]


def test_an_optimizer_with_a_step_of_its_own_takes_it() -> None:
    class Counted(sp.SGD):
        def step(self, grads: Any, grad_scale: float = 1.0) -> None:
            self.counted = getattr(self, "counted", 0) + 1
            super().step(grads, grad_scale)

    x, y = np.ones((40, 5), np.float32), np.zeros((40, 3), np.float32)
    model = nn.Sequential([nn.Dense(3)], 5)
    optimizer = Counted(model.param_groups(), lr=0.1)
    Trainer(model, sp.losses.mse, optimizer).fit(x, y, batch_size=4, verbose=False)
    assert optimizer.counted == optimizer.steps == 10
    replaced = sp.SGD(model.param_groups(), lr=0.1)
    replaced.step = lambda *gradients: None  # type: ignore[method-assign]
    Trainer(model, sp.losses.mse, replaced).fit(x, y, batch_size=4, verbose=False)
    assert replaced.steps == 0


def test_another_thread_may_stop_training_and_run_meanwhile() -> None:
    x, y = np.ones((1000, 5), np.float32), np.zeros((1000, 3), np.float32)
    model = nn.Sequential([nn.Dense(3)], 5)
    trainer = Trainer(model, sp.losses.mse, sp.SGD(model.param_groups(), lr=0.0))
    timer = threading.Timer(0.2, lambda: setattr(trainer, "stop_training", True))
    timer.start()
    history = trainer.fit(np.tile(x, (1000, 1)), np.tile(y, (1000, 1)), batch_size=1, verbose=False)
    timer.join()
    assert trainer.stop_training and 0 < trainer.optimizer.steps < 10**6
    assert history.epoch == [0] and np.isfinite(history.history["loss"][0])


def test_what_a_stretch_of_batches_refuses() -> None:
    model = nn.Sequential([nn.Dense(2)], 3)
    x, y = np.ones((8, 3), np.float32), np.zeros((8, 2), np.float32)
    optimizer = sp.SGD(model.param_groups(), lr=0.1)
    run: Any = model.backpropagation(sp.losses.mse, x, y)
    train = functools.partial(
        run.train, optimizer=optimizer._core, gradients=model.gradients(), grad_scale=1.0, total=0.0
    )
    before = model.params.copy()
    for order, begin, end, size, message in (
        (None, -1, 8, 2, "^begin, end, size: "),
        (None, 0, 9, 2, "^begin, end, size: "),
        (None, 0, 8, 0, "^begin, end, size: "),
        (np.arange(7), 0, 8, 2, "^begin, end, size: "),
        (np.arange(8)[:, None], 0, 8, 2, "^order: "),
        (np.arange(1, 9), 6, 8, 2, "^rows: "),
    ):
        with pytest.raises(ValueError, match=message):
            train(order, begin, end, size)
    with pytest.raises(ValueError, match=r"^grads: "):
        train(None, 0, 8, 2, gradients=[])
    assert (model.params == before).all() and optimizer.steps == 0
    assert train(None, 8, 8, 2) == train(None, 8, 3, 2) == (8, 0.0)
    end, total = train(np.arange(8), 0, 7, 2)
    assert end == 7 and optimizer.steps == 4 and total > 0
    wrong = functools.partial(train, optimizer=optimizer)
    with pytest.raises(TypeError):
        wrong(None, 0, 8, 2)


def csr(x: Any) -> tuple[Any, Any, Any]:
    rows, columns = np.nonzero(x)
    return np.searchsorted(rows, np.arange(len(x) + 1)), columns.astype(np.int32), x[rows, columns]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layers", MODELS)
def test_sparse_rows_give_the_bits_of_dense_ones(layers: str, dtype: Any, threads: int) -> None:
    models = [nn.Sequential(MODELS[layers](), 300, seed=1, dtype=dtype) for _ in range(2)]
    sp.set_num_threads(threads)
    rng = np.random.default_rng(0)
    for rows, share in ((150, 0.05), (7, 0.5), (1, 0.0), (300, 0.01), (0, 0.0)):
        x, grad = rng.normal(size=(rows, 300)).astype(dtype), rng.normal(size=(rows, CLASSES)).astype(dtype)
        x[rng.random(x.shape) >= share] = 0
        assert models[0].takes_sparse(rows)
        assert models[0].forward_sparse(*csr(x)).tobytes() == models[1].forward(x, train=True).tobytes()
        for model in models:
            model.grads.fill(np.nan)
            model.backward(grad.copy())
        assert models[0].grads.tobytes() == models[1].grads.tobytes()


def test_sparse_rows_that_are_refused() -> None:
    model = nn.Sequential([nn.Dense(3)], 4)
    starts, columns, values = csr(np.eye(4, dtype=np.float32)[[0, 1, 1]] + np.eye(4, dtype=np.float32)[[3, 2, 3]])
    good = model.forward_sparse(starts, columns, values).copy()
    assert model._chain is not None
    for arguments, error, message in (
        (
            (starts.astype(np.int32), columns, values),
            TypeError,
            "starts: expected a contiguous array of int64, got int32",
        ),
        ((starts, columns.astype(np.int64), values), TypeError, "columns: expected a contiguous array of int32"),
        ((starts, columns[::2], values[::2]), TypeError, "columns: .* got int32"),
        ((starts, list(columns), values), TypeError, "columns: .* got list"),
        ((starts, columns, values.astype(float)), TypeError, "values: expected dtype float32, got float64"),
        ((starts, columns, values[:-1].copy()), ValueError, "ascending columns below 4"),
        ((starts[:-1].copy(), columns, values), ValueError, "ascending columns"),
        ((starts[::-1].copy(), columns, values), ValueError, "ascending columns"),
        ((np.array([0, 9, -9, 6]), columns, values), ValueError, "ascending columns"),
        ((np.zeros(0, np.int64), columns, values), ValueError, "ascending columns"),
        ((starts, columns[::-1].copy(), values), ValueError, "ascending columns"),
        ((starts, np.full_like(columns, 1), values), ValueError, "ascending columns"),
        ((starts, columns + np.int32(1), values), ValueError, "ascending columns"),
        ((starts, columns - np.int32(1), values), ValueError, "ascending columns"),
    ):
        with pytest.raises(error, match=message):
            model._chain.forward_sparse(*arguments)
    assert np.array_equal(model.forward_sparse(starts, columns, values), good)
    with pytest.raises(ValueError, match="forward_sparse: expected a model of dense layers alone"):
        nn.Sequential([nn.Dropout(0.5), nn.Dense(3)], 4).forward_sparse(starts, columns, values)
    values.resize(3, refcheck=False)
    with pytest.raises(ValueError, match="its arrays to stay as they are"):
        model.backward(np.ones((3, 3), np.float32))


def test_sparse_rows_may_be_written_before_the_gradient_is_made() -> None:
    model = nn.Sequential([nn.Dense(3)], 4)
    starts, columns, values = csr(np.eye(4, dtype=np.float32))
    grad = np.arange(12, dtype=np.float32).reshape(4, 3)
    model.forward_sparse(starts, columns, values)
    starts[:], columns[:] = 1 << 40, 1 << 30
    model.backward(grad.copy())
    assert np.array_equal(model.layers[0].grads["weight"], grad)


class EveryOther(nn.Layer):
    """Outputs with gaps between them."""

    def build(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (input_shape[0] // 2,)

    def forward(self, x: Any, train: bool) -> Any:
        return x[:, ::2]

    def backward(self, grad: Any) -> Any:
        return np.repeat(grad, 2, axis=1)


def test_a_large_product_takes_inputs_with_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.layers, "SMALL_WORK", 1)
    model = nn.Sequential([EveryOther(), nn.Dense(3)], 8)
    x = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    weight = model.named_parameters()["1.weight"]
    np.testing.assert_allclose(model.forward(x), x[:, ::2] @ weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("step", [1, 201])
@pytest.mark.parametrize("unit", [5, 150, 199])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_shows_where_its_input_is_zero(bad: float, unit: int, step: int) -> None:
    x = np.zeros((64, 400), np.float32)
    x[:, ::10] = np.random.default_rng(0).normal(size=(64, 40))
    model = nn.Sequential([nn.Dense(200)], 400)
    finite = model.forward(x).copy()
    assert np.isfinite(finite).all()
    model.layers[0].params["weight"][step, unit] = bad
    outputs = model.forward(x)
    assert np.isnan(outputs[:, unit]).all() and np.isfinite(np.delete(outputs, unit, axis=1)).all()
    np.testing.assert_array_equal(np.delete(outputs, unit, axis=1), np.delete(finite, unit, axis=1))


@pytest.mark.parametrize("nonzero", [0.4, 1.0])
def test_blocks_of_steps_that_one_call_takes_together_give_the_same_bits(nonzero: float) -> None:
    sp.set_num_threads(2)
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(200, 784)) * (rng.random((200, 784)) < nonzero)).astype(np.float32)
    weight = rng.normal(size=(784, 128)).astype(np.float32)
    expected, out = reference.matmul(x, weight), np.empty((200, 128), np.float32)
    for _ in range(10):  # who takes which of them differs
        _core.matmul(x, weight, out)
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("layers", MODELS)
def test_training_gives_the_same_bits(layers: str) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(100, 400)).astype(np.float32), rng.integers(0, CLASSES, 100)
    models = pair(MODELS[layers], 400)
    for model in models:
        optimizer = sp.AdamW(model.param_groups(), lr=1e-2, max_norm=0.1)
        trainer = Trainer(model, sp.losses.softmax_cross_entropy, optimizer)
        trainer.fit(x, y, batch_size=32, epochs=2, validation_split=0.2, verbose=False)
    assert models[0].params.tobytes() == models[1].params.tobytes()


def test_a_gradient_may_lie_in_the_outputs_unless_an_activation_needs_them() -> None:
    ours, theirs = pair(MODELS["more inputs than units"], 20)
    x, y = np.random.default_rng(0).normal(size=(8, 20)).astype(np.float32), np.arange(8) % CLASSES
    for model in (ours, theirs):
        outputs = model.forward(x, train=True)
        model.backward(sp.losses.softmax_cross_entropy(outputs, y, out=outputs)[1])
    assert ours.grads.tobytes() == theirs.grads.tobytes()
    for model in pair(MODELS["an activation last"], 20):
        with pytest.raises(ValueError, match="grad: expected memory of its own"):
            model.backward(model.forward(x, train=True))


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


def test_a_refused_batch_changes_nothing() -> None:
    made = chain(weight=np.eye(2, dtype=np.float32), dweight=np.zeros((2, 2), np.float32))
    y = made.forward(np.ones((4, 2), np.float32))
    with pytest.raises(ValueError, match=r"^x: "):
        made.forward(y[:2])
    made.backward(np.ones((4, 2), np.float32))


def test_arrays_that_changed_since_are_refused_or_harmless() -> None:
    g = np.ones((4, 2), np.float32)
    for changes_input in (True, False):
        made, x = chain(), np.ones((4, 3), np.float32)
        y = made.forward(x)
        if changes_input:
            x.resize((2, 3), refcheck=False)
        else:
            assert not isinstance(y.base, np.ndarray)  # nobody can resize what it lies in
            y.shape = (2, 4)
        with pytest.raises(ValueError, match="stay as they are"):
            made.backward(g)
        assert made.forward(np.ones((4, 3), np.float32)).shape == (4, 2)
    dweight, x = np.zeros((3, 2), np.float32), np.ones((4, 3), np.float32)
    weight = np.ones((3, 2), np.float32)
    made = chain(weight=weight, dweight=dweight)
    made.forward(x)
    x.shape, weight.shape = (12, 1), (1, 6)
    made.backward(g)
    assert (dweight == 4).all()


@pytest.mark.parametrize("of", ["dweight", "dbias"])
def test_inputs_and_gradients_that_lie_in_what_is_written_are_refused(of: str) -> None:
    memory = np.ones(64, np.float32)
    arrays: dict[str, Any] = {"dweight": memory[:6].reshape(3, 2), "dbias": memory[6:8]}
    made = chain(0, **{of: arrays[of]})
    made.forward(memory[:12].reshape(4, 3))
    with pytest.raises(ValueError, match=rf"^x: .*{of}"):
        made.backward(np.ones((4, 2), np.float32))
    made.forward(np.ones((4, 3), np.float32))
    with pytest.raises(ValueError, match=rf"^grad: .*{of}"):
        made.backward(memory[:8].reshape(4, 2))


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
