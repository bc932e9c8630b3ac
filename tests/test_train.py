"""The training loop: what it computes, what it takes, what it refuses, that it repeats."""

from __future__ import annotations

import copy
import math
import os
import pickle
import signal
from functools import partial
from typing import Any

import numpy as np
import pytest
import sklearn.metrics

import steepest as sp
from steepest import _core, datasets, nn
from steepest import metrics as ours
from steepest.callbacks import Callback, ModelCheckpoint
from steepest.train import Trainer, on_probabilities, split_rows


def blobs(n: int = 300, classes: int = 3, seed: int = 0) -> Any:
    """Well separated classes in five dimensions."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    centres = np.random.default_rng(9).normal(size=(classes, 5)) * 3
    return (centres[y] + rng.normal(size=(n, 5))).astype(np.float32), y


def trainer(
    model: Any = None,
    loss: Any = None,
    make: Any = sp.Adam,
    lr: float = 0.01,
    outputs: int = 3,
    metrics: Any = (),
    **options: Any,
) -> Any:
    if model is None:
        model = nn.Sequential([nn.Dense(16), nn.ReLU(), nn.Dense(outputs)], 5, seed=1)
    optimizer = make(model.param_groups(), lr=lr)
    return Trainer(model, loss or sp.losses.softmax_cross_entropy, optimizer, metrics, **options)


def quiet(t: Any, x: Any, y: Any = None, **arguments: Any) -> Any:
    return t.fit(x, y, **{"verbose": False, **arguments})


def accuracy(y_true: Any, y_pred: Any) -> Any:
    return float(np.mean(y_true == y_pred))


X, Y = blobs()


def test_it_learns() -> None:
    t = trainer(metrics=[accuracy])
    history = quiet(t, X, Y, epochs=20, validation_split=0.2)
    assert history.epoch == list(range(20))
    assert list(history.history) == [
        "loss", "accuracy", "lr", "val_loss", "val_accuracy",
    ]  # fmt: skip
    assert history.history["loss"][-1] < 0.2 * history.history["loss"][0]
    scores = t.evaluate(*blobs(seed=1))
    assert scores["accuracy"] > 0.95
    assert t.predict(X).argmax(-1).shape == Y.shape


@pytest.mark.parametrize("make", [sp.SGD, sp.Adam])
@pytest.mark.parametrize("batch_size", [1, 8, None])
def test_linear_regression_reaches_least_squares(make: Any, batch_size: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 2))
    y = x @ [2.0, -3.0] + 0.5
    model = nn.Sequential([nn.Dense(1)], 2, dtype=np.float64)
    t = trainer(model, sp.losses.mse, make, lr=0.05)
    quiet(t, x, y, batch_size=batch_size, epochs={1: 10, 8: 80, None: 600}[batch_size])
    np.testing.assert_allclose(model.params, [2, -3, 0.5], atol=5e-3)


def test_one_step_of_gradient_descent_is_the_formula() -> None:
    model = nn.Sequential([nn.Dense(3)], 5, dtype=np.float64)
    before = {k: v.copy() for k, v in model.named_parameters().items()}
    quiet(trainer(model, make=sp.SGD, lr=0.1), X, Y, batch_size=None)
    z = X.astype(float) @ before["0.weight"] + before["0.bias"]
    p = np.exp(z - z.max(1, keepdims=True))
    d = (p / p.sum(1, keepdims=True) - np.eye(3)[Y]) / len(X)
    after = model.named_parameters()
    np.testing.assert_allclose(after["0.weight"], before["0.weight"] - 0.1 * X.T @ d, atol=1e-12)
    np.testing.assert_allclose(after["0.bias"], before["0.bias"] - 0.1 * d.sum(0), atol=1e-12)


def parameters(**arguments: Any) -> Any:
    t = trainer()
    quiet(t, X, Y, epochs=3, **arguments)
    return t.model.params


def test_a_seed_repeats_and_another_does_not() -> None:
    np.testing.assert_array_equal(parameters(seed=4), parameters(seed=4))
    assert not np.array_equal(parameters(seed=4), parameters(seed=5))
    np.testing.assert_array_equal(parameters(seed=4, shuffle=False), parameters(seed=5, shuffle=False))


@pytest.mark.kernels
def test_threads_change_nothing() -> None:
    x = np.random.default_rng(0).normal(size=(64, 400))
    kept, results = sp.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            sp.set_num_threads(n)
            model = nn.Sequential([nn.Dense(300), nn.ReLU(), nn.Dropout(0.5), nn.Dense(3)], 400)
            assert model.params.size > 100_000  # a step of this size is split
            quiet(trainer(model), x, Y[:64], epochs=3)
            results.append(model.params)
    finally:
        sp.set_num_threads(kept)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.kernels
def test_images_are_learned_and_threads_change_nothing() -> None:
    x, y = datasets.load_digits()
    results = []
    for threads, units in ((1, 0), (3, 50)):
        sp.set_num_threads(threads)
        _core._share_blocks_of(units)
        model = nn.Sequential(
            [
                *(nn.Conv2D(16, 3, padding="same"), nn.ReLU(), nn.MaxPool2D()),
                *(nn.Flatten(), nn.Dense(32), nn.ReLU(), nn.Dropout(0.25), nn.Dense(10)),
            ],
            (8, 8, 1),
        )
        optimizer = sp.Adam(model.param_groups(), lr=3e-3)
        t = Trainer(model, sp.losses.softmax_cross_entropy, optimizer, [accuracy])
        history = quiet(t, x.reshape(-1, 8, 8), y, epochs=5, validation_split=0.3)
        assert history.history["val_accuracy"][-1] > 0.9, history.history
        results.append((model.params.copy(), t.predict(x.reshape(-1, 8, 8, 1)), history.history))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    assert results[0][2] == results[1][2]


def test_resuming_goes_on_as_if_never_stopped() -> None:
    whole, parts = trainer(metrics=[accuracy]), trainer(metrics=[accuracy])
    quiet(whole, X, Y, epochs=4, validation_split=0.25)
    quiet(parts, X, Y, epochs=2, validation_split=0.25)
    quiet(parts, X, Y, epochs=4, validation_split=0.25, initial_epoch=2)
    np.testing.assert_array_equal(whole.model.params, parts.model.params)
    assert whole.history.history == parts.history.history
    assert parts.history.epoch == [0, 1, 2, 3]


def misaligned(x: Any) -> Any:
    shifted = np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    shifted[...] = x
    return shifted


@pytest.mark.parametrize(
    "prepare",
    [
        lambda x: x.astype(x.dtype.newbyteorder(">")),
        lambda x: x.astype(np.float64 if x.ndim == 2 else np.int32),
        np.asfortranarray,
        lambda x: np.repeat(x, 2, axis=0)[::2],
        lambda x: x.tolist(),
        misaligned,
    ],
    ids=["big-endian", "wider", "fortran", "strided", "list", "misaligned"],
)
def test_the_form_of_the_data_does_not_matter(prepare: Any) -> None:
    for shuffle in (True, False):
        t = trainer()
        quiet(t, prepare(X), prepare(Y), epochs=3, shuffle=shuffle)
        np.testing.assert_array_equal(t.model.params, parameters(shuffle=shuffle))


def test_bytes_from_a_memory_map(tmp_path: Any) -> None:
    values = np.random.default_rng(0).integers(0, 255, (50, 5), np.uint8)
    np.save(tmp_path / "x.npy", values)
    mapped, plain = trainer(), trainer()
    quiet(mapped, np.load(tmp_path / "x.npy", mmap_mode="r"), Y[:50])
    quiet(plain, values.astype(np.float32), Y[:50])
    np.testing.assert_array_equal(mapped.model.params, plain.model.params)


def test_a_stream_of_batches() -> None:
    class Batches:
        def __iter__(self) -> Any:
            return ((X[i : i + 32], Y[i : i + 32]) for i in range(0, len(X), 32))

    t = trainer(metrics=[accuracy])
    history = quiet(t, Batches(), epochs=3, validation_data=[(X[:9], Y[:9])])
    np.testing.assert_array_equal(t.model.params, parameters(shuffle=False))
    assert len(history.history["val_accuracy"]) == 3
    assert t.evaluate(Batches()) == pytest.approx(t.evaluate(X, Y))
    with pytest.raises(ValueError, match="one epoch has used up"):
        quiet(t, iter([(X, Y)]), epochs=2)
    with pytest.raises(ValueError, match="a stream can't be split"):
        quiet(t, Batches(), validation_split=0.1)
    with pytest.raises(ValueError, match=r"expected batches \(x, y\)"):
        quiet(t, [X, Y])
    with pytest.raises(TypeError, match="an iterable of batches"):
        quiet(t, 3)


def test_weights_equal_repetition() -> None:
    weights = np.random.default_rng(2).integers(0, 4, len(X))
    rows = np.repeat(np.arange(len(X)), weights)
    weighted, repeated, by_class = (trainer(make=sp.SGD) for _ in range(3))
    a = quiet(weighted, X, Y, batch_size=None, epochs=3, sample_weight=weights)
    b = quiet(repeated, X[rows], Y[rows], batch_size=None, epochs=3)
    np.testing.assert_allclose(weighted.model.params, repeated.model.params, atol=1e-5)
    np.testing.assert_allclose(a.history["loss"], b.history["loss"], rtol=1e-5)
    assert weighted.evaluate(X, Y, sample_weight=weights)["loss"] == pytest.approx(
        repeated.evaluate(X[rows], Y[rows])["loss"], rel=1e-5
    )

    quiet(by_class, X, Y, class_weight={0: 3.0, 2: 0.5})
    weighted = trainer(make=sp.SGD)
    quiet(weighted, X, Y, sample_weight=np.array([3, 1, 0.5])[Y])
    np.testing.assert_array_equal(by_class.model.params, weighted.model.params)


def test_class_weight_forms() -> None:
    weights = (len(Y) / (3 * np.bincount(Y))).tolist()
    results = []
    for form in ("balanced", weights, dict(enumerate(weights))):
        t = trainer()
        quiet(t, X, Y, class_weight=form)
        results.append(t.model.params)
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5)
    np.testing.assert_array_equal(results[1], results[2])


def test_accumulated_batches_equal_a_large_one() -> None:
    parts, whole = trainer(make=sp.SGD, lr=0.1), trainer(make=sp.SGD, lr=0.1)
    a = quiet(parts, X, Y, batch_size=40, epochs=3, accumulate=8, shuffle=False)
    b = quiet(whole, X, Y, batch_size=None, epochs=3)
    np.testing.assert_allclose(parts.model.params, whole.model.params, atol=1e-5)
    np.testing.assert_allclose(a.history["loss"], b.history["loss"], rtol=1e-4)
    assert parts.optimizer.steps == whole.optimizer.steps == 3
    quiet(parts, X, Y, batch_size=40, accumulate=3)  # 8 batches: 3 + 3 + 2
    assert parts.optimizer.steps == 6


@pytest.mark.parametrize("labels", [Y, np.eye(3)[Y], np.eye(3, dtype=int)[Y], Y.astype(np.uint8)])
def test_forms_of_classes(labels: Any) -> None:
    t = trainer(metrics=[accuracy])
    quiet(t, X, labels, epochs=2)
    expected = trainer(metrics=[accuracy])
    quiet(expected, X, Y, epochs=2)
    np.testing.assert_allclose(t.model.params, expected.model.params, rtol=1e-4, atol=1e-5)
    assert t.evaluate(X, labels)["accuracy"] == expected.evaluate(X, Y)["accuracy"]


@pytest.mark.parametrize("dtype", [int, bool, np.float64])
def test_binary_targets(dtype: Any) -> None:
    y = (Y == 1).astype(dtype)
    metrics = {"accuracy": accuracy, "auc": sklearn.metrics.roc_auc_score}
    t = trainer(loss=sp.losses.binary_cross_entropy, outputs=1, metrics=metrics)
    quiet(t, X, y, epochs=30)
    scores = t.evaluate(X, y)
    assert scores["accuracy"] > 0.97
    assert scores["auc"] == sklearn.metrics.roc_auc_score(y, t.predict(X)[:, 0])


def test_metrics_see_what_they_ask_for() -> None:
    seen = {}

    def outputs(y_true: Any, y_pred: Any) -> Any:
        seen["outputs"] = y_true.copy(), y_pred.copy()
        return 0

    outputs.takes = "outputs"  # type: ignore[attr-defined]
    metrics = {
        "f1": partial(sklearn.metrics.f1_score, average="macro"),
        "log_loss": on_probabilities(sklearn.metrics.log_loss),
        "ours": ours.log_loss,
        "outputs": outputs,
    }
    t = trainer(metrics=metrics)
    quiet(t, X, Y)
    scores, logits = t.evaluate(X, Y, batch_size=77), t.predict(X, batch_size=77)
    assert scores["log_loss"] == pytest.approx(scores["loss"], rel=1e-5)
    assert scores["ours"] == pytest.approx(scores["loss"], rel=1e-5)
    assert scores["f1"] == sklearn.metrics.f1_score(Y, logits.argmax(-1), average="macro")
    np.testing.assert_array_equal(seen["outputs"][0], Y)
    np.testing.assert_array_equal(seen["outputs"][1], logits)
    assert list(trainer(metrics=[metrics["f1"], accuracy]).metrics) == ["f1_score", "accuracy"]


def test_metrics_beyond_their_capacity(monkeypatch: Any) -> None:
    t = trainer(metrics=[accuracy])
    whole = t.evaluate(X, Y, batch_size=16)
    monkeypatch.setattr("steepest._scoring.CAPACITY", 90)
    for batch_size in (16, 50, None):
        assert t.evaluate(X, Y, batch_size=batch_size) == pytest.approx(whole)


def test_training_metrics_are_those_of_the_outputs_before_each_update() -> None:
    t = trainer(metrics=[accuracy])
    before = t.evaluate(X, Y)
    history = quiet(t, X, Y, batch_size=None).history
    assert (history["loss"][0], history["accuracy"][0]) == pytest.approx(tuple(before.values()))


@pytest.mark.parametrize("form", ["groups", "flat", "mapping", "sequence", "layers"])
def test_every_form_of_parameters(form: Any) -> None:
    model = nn.Sequential([nn.Dense(16), nn.ReLU(), nn.Dense(3)], 5, seed=1)
    named = model.named_parameters()
    params: Any = {
        "groups": model.param_groups(),
        "flat": model.params,
        "mapping": named,
        "sequence": list(named.values()),
        "layers": [{"params": {k: v for k, v in named.items() if k[0] == index}} for index in "02"],
    }[form]
    t = Trainer(model, sp.losses.softmax_cross_entropy, sp.Adam(params, lr=0.01))
    quiet(t, X, Y, epochs=3)
    np.testing.assert_array_equal(model.params, parameters())


def test_frozen_layers_stay() -> None:
    model = nn.Sequential([nn.Dense(16), nn.ReLU(), nn.Dense(3)], 5, seed=1)
    before = {k: v.copy() for k, v in model.named_parameters().items()}
    model.freeze(2)
    quiet(trainer(model), X, Y)
    same = {k: np.array_equal(v, before[k]) for k, v in model.named_parameters().items()}
    assert same == {"0.weight": True, "0.bias": True, "2.weight": False, "2.bias": False}


class At(Callback):
    """Does something at one batch."""

    def __init__(self, batch: Any, action: Any) -> None:
        self.batch, self.action = batch, action

    def on_train_batch_end(self, batch: Any, logs: Any) -> None:
        if batch == self.batch:
            self.action(self.trainer)


def test_ctrl_c_ends_training_with_the_history_so_far() -> None:
    class Interrupt(Callback):
        def on_epoch_begin(self, epoch: Any, logs: Any) -> None:
            if epoch == 2:
                os.kill(os.getpid(), signal.SIGINT)

    ended = []

    class End(Callback):
        def on_train_end(self, logs: Any) -> None:
            ended.append(self.trainer)

    t = trainer()
    history = quiet(t, X, Y, epochs=5, callbacks=[Interrupt(), End()])
    assert history.interrupted
    assert history.epoch == [0, 1]
    assert ended == [t]
    assert not quiet(t, X, Y).interrupted


def test_a_callback_may_stop_training_within_an_epoch() -> None:
    t = trainer()
    history = quiet(t, X, Y, epochs=5, callbacks=[At(3, lambda t: setattr(t, "stop_training", True))])
    assert history.epoch == [0]
    assert t.optimizer.steps == 4


def test_nonfinite_loss() -> None:
    x = X.copy()
    x[70] = np.nan
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 1, batch 3, whose x holds NaN"):
        quiet(trainer(), x, Y, shuffle=False)
    with pytest.raises(FloatingPointError, match="in epoch 1, batch 2; lower the learning rate"):
        quiet(trainer(make=sp.SGD, lr=1e38), X, Y, shuffle=False)
    t = trainer(nonfinite="skip")
    history = quiet(t, x, Y, shuffle=False)
    assert t.optimizer.steps == 9  # of 10 batches
    assert np.isfinite(t.model.params).all()
    assert math.isfinite(history.history["loss"][0])
    quiet(t, x, Y, shuffle=False, accumulate=4)
    assert np.isfinite(t.model.params).all()


def test_find_lr() -> None:
    t = trainer(lr=0.25)
    before, state = t.model.params.copy(), t.optimizer.steps
    finder = t.find_lr(X, Y, start=1e-6, end=100)
    assert 1e-4 < finder.suggestion < 1
    assert len(finder.lrs) == len(finder.losses) <= 100
    assert finder.lrs == sorted(finder.lrs)
    np.testing.assert_array_equal(t.model.params, before)
    assert (t.optimizer.lr, t.optimizer.steps) == (0.25, state)
    assert t.history.epoch == []
    with pytest.raises(ValueError, match="0 < start < end"):
        t.find_lr(X, Y, start=1, end=1e-3)


def test_a_loss_of_ones_own() -> None:
    def absolute(outputs: Any, targets: Any, *, sample_weight: Any = None, out: Any = None) -> Any:
        difference = outputs - targets
        np.divide(np.sign(difference), difference.size, out=out)
        return float(np.abs(difference).mean()), out

    t = trainer(loss=absolute, outputs=1)
    history = quiet(t, X, X[:, 0], epochs=20).history["loss"]
    assert history[-1] < 0.3 * history[0]


def test_predict_and_evaluate_in_any_batches() -> None:
    t = trainer()
    outputs = t.predict(X)
    assert outputs.dtype == np.float32
    for batch_size in (1, 7, None):
        np.testing.assert_allclose(t.predict(X, batch_size=batch_size), outputs, atol=1e-5)
        assert t.evaluate(X, Y, batch_size=batch_size) == pytest.approx(t.evaluate(X, Y))
    assert t.predict(X[:0]).shape == (0, 3)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_split_rows_is_stratified(seed: Any, fraction: Any) -> None:
    y = np.repeat([0, 1, 2], [100, 37, 6])  # sorted: the last rows would be one class
    kept, held_out = split_rows(y, fraction, seed)
    assert len(held_out) == round(fraction * len(y))
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held_out])), np.arange(len(y)))
    np.testing.assert_array_equal(kept, np.sort(kept))
    shares = np.bincount(y[held_out], minlength=3) - fraction * np.bincount(y)
    assert (np.abs(shares) < 1).all()
    np.testing.assert_array_equal(split_rows(y, fraction, seed)[1], held_out)


def test_split_rows_of_other_targets() -> None:
    y = np.random.default_rng(0).normal(size=(20, 2))
    kept, held_out = split_rows(y, 0.3, 1)
    assert (len(kept), len(held_out)) == (14, 6)
    assert not np.array_equal(held_out, split_rows(y, 0.3, 2)[1])
    assert len(split_rows(np.arange(20), 0.3)[1]) == 6  # every row a class: not stratified
    assert set(split_rows(np.array(["a", "b"] * 10), 0.1)[1] % 2) == {0, 1}
    for fraction in (1, -0.1, 0.001):
        with pytest.raises(ValueError, match="fraction"):
            split_rows(y, fraction)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected None or a positive integer, got 0"),
        ({"y": Y[:-1]}, "y: expected 300 rows, as x has"),
        ({"sample_weight": [1.0]}, "sample_weight: expected 300 rows"),
        ({"x": X[:0], "y": Y[:0]}, "x: expected at least one example"),
        ({"x": X[:, :3]}, r"x: expected shape \(batch, 5\)"),
        ({"epochs": -1}, "0 <= initial_epoch <= epochs"),
        ({"accumulate": 0}, "accumulate >= 1"),
        ({"validation_split": 1.0}, "validation_split: expected 0 <= fraction < 1"),
        ({"validation_data": (X, Y + 1)}, "validation_data: y: expected 0 to 2 for 3 classes, got 3 in row "),
        ({"y": np.where(np.arange(300) == 290, -1, Y)}, "^y: expected 0 to 2 for 3 classes, got -1 in row 290"),
        ({"validation_split": 0.1, "validation_data": (X, Y)}, "not both"),
        ({"class_weight": {3: 1.0}}, "classes 0 to 2, got 3"),
        (
            {"sample_weight": np.ones((len(X), 1))},
            r"sample_weight: expected numbers of shape \(32,\), got float64 \(32, 1\)",
        ),
        ({"sample_weight": np.ones(len(X), complex)}, "sample_weight: expected numbers of shape .*, got complex128"),
        ({"class_weight": {0: -1.0}}, "class_weight: expected finite weights >= 0"),
        ({"class_weight": {0: 1.0}, "y": np.eye(3)[Y]}, "class_weight: expected integer labels, got float64"),
        ({"x": [(X, Y)], "y": None, "class_weight": "balanced"}, "needs arrays"),
        ({"x": [(X, Y)], "y": None, "sample_weight": Y}, "carry their own"),
    ],
)
def test_refused_values(arguments: Any, message: Any) -> None:
    t = trainer()
    before = t.model.params.copy()
    with pytest.raises(ValueError, match=message):
        quiet(t, **{"x": X, "y": Y, **arguments})
    np.testing.assert_array_equal(t.model.params, before)


def test_refused_types_and_optimizers() -> None:
    with pytest.raises(TypeError, match="y: expected numbers, got <U1; encode classes"):
        quiet(trainer(), X, np.full(len(X), "a"))
    with pytest.raises(TypeError, match="y: expected classes as integers, or a probability for each, got float64"):
        quiet(trainer(), X, Y.astype(float))
    with pytest.raises(TypeError, match=r"validation_data: .* got an array"):
        quiet(trainer(), X, Y, validation_data=X)
    labels = np.zeros((10, 4), int)
    labels[7, 2] = 3
    sequences = trainer(nn.Sequential([nn.Dense(12), nn.Reshape((4, 3))], 5))
    with pytest.raises(ValueError, match=r"^y: expected 0 to 2 for 3 classes, got 3 in row 7$"):
        quiet(sequences, X[:10], labels)
    for name in ("batch_size", "epochs", "initial_epoch", "accumulate"):
        with pytest.raises(TypeError, match=f"^{name}: .*integer, got float"):
            quiet(trainer(), X, Y, **{name: 1.5})
    for make in (nn.Dense, partial(nn.Conv2D, kernel_size=3)):
        with pytest.raises(TypeError, match=r"^(units|filters): .*integer, got str"):
            make("8")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"metrics: expected functions f\(y_true, y_pred\)"):
        trainer(metrics=["accuracy"])
    with pytest.raises(ValueError, match="two have the same name"):
        trainer(metrics=[accuracy, accuracy])
    with pytest.raises(TypeError, match="loss: expected a function"):
        trainer(loss="mse")
    with pytest.raises(TypeError, match="callbacks: expected instances of Callback"):
        quiet(trainer(), X, Y, callbacks=[print])
    with pytest.raises(ValueError, match="nonfinite: expected 'raise' or 'skip'"):
        trainer(nonfinite="ignore")
    with pytest.raises(ValueError, match="not this model's"):
        Trainer(trainer().model, sp.losses.mse, trainer().optimizer)


def test_ignored_rows_do_not_count_in_means() -> None:
    """Whatever the batches, as if their weight were 0."""
    y = np.where(np.random.default_rng(0).random(len(Y)) < np.linspace(0, 0.98, len(Y)), -1, Y)
    loss = partial(sp.losses.softmax_cross_entropy, ignore_index=-1)
    t = trainer(loss=loss)
    weights = (y >= 0).astype(np.float32)
    expected = trainer().evaluate(X, np.maximum(y, 0), sample_weight=weights, batch_size=None)["loss"]
    for batch_size in (None, 10, 4):
        assert t.evaluate(X, y, batch_size=batch_size)["loss"] == pytest.approx(expected)
    assert t.evaluate(X, y, batch_size=7, sample_weight=np.ones(len(y)))["loss"] == pytest.approx(expected)


def test_batches_with_ignored_rows_accumulate_to_the_large_one() -> None:
    y = np.where(np.random.default_rng(0).random(40) < 0.5, -1, Y[:40])
    loss = partial(sp.losses.softmax_cross_entropy, ignore_index=-1)
    ts = [trainer(nn.Sequential([nn.Dense(3)], 5, seed=1, dtype=np.float64), loss, sp.SGD) for _ in range(2)]
    quiet(ts[0], X[:40], y, batch_size=None)
    quiet(ts[1], X[:40], y, batch_size=10, accumulate=4, shuffle=False)
    assert np.allclose(ts[0].model.params, ts[1].model.params, rtol=1e-12)


def test_class_weights_of_booleans() -> None:
    y = Y == 0
    by_number = quiet(trainer(outputs=2), X, y.astype(int), class_weight={0: 1.0, 1: 5.0}).history
    assert quiet(trainer(outputs=2), X, y, class_weight={False: 1.0, True: 5.0}).history == by_number


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"class_weight": 2.0}, TypeError),
        ({"class_weight": "balance"}, TypeError),
        ({"class_weight": {"a": 1.0}}, TypeError),
        ({"class_weight": {0: None}}, TypeError),
        ({"accumulate": 2.5}, TypeError),
        ({"epochs": 2.5}, TypeError),
        ({"seed": -1}, ValueError),
        ({"callbacks": [object()]}, TypeError),
        ({"callbacks": [ModelCheckpoint("/no/such/folder/m.safetensors")]}, FileNotFoundError),
        ({"x": np.ma.masked_array(X, X > 0)}, TypeError),
        ({"y": np.ma.masked_array(Y, Y > 0)}, TypeError),
        ({"validation_data": (X[:, :3], Y)}, ValueError),
        ({"validation_data": [X[:, :3], Y]}, ValueError),
        ({"validation_data": (X, Y / 2)}, TypeError),
    ],
)
def test_a_refused_fit_changes_nothing(arguments: Any, error: Any) -> None:
    t = trainer()
    quiet(t, X, Y, epochs=2)
    before = t.model.params.copy()
    with pytest.raises(error):
        t.fit(**{"x": X, "y": Y, "verbose": False, **arguments})
    assert t.history.epoch == [0, 1] and np.array_equal(t.model.params, before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
@pytest.mark.parametrize(
    "make",
    [
        lambda m: sp.Adam(m.param_groups(), lr=sp.schedules.cosine(0.05, steps=100), max_norm=1.0),
        lambda m: sp.Adam(m.params, state_dtype="bfloat16"),
        lambda m: sp.Adam(m.named_parameters()),
    ],
)
def test_a_copied_trainer_goes_on_with_its_own_model(make: Any, copied: Any) -> None:
    model = nn.Sequential([nn.Dense(16), nn.ReLU(), nn.Dropout(0.5), nn.Dense(3)], 5, seed=1)
    t = Trainer(model, sp.losses.softmax_cross_entropy, make(model))
    quiet(t, X, Y, epochs=2)
    other = copied(t)
    before = model.params.copy()
    went_on = quiet(other, X, Y, epochs=4, initial_epoch=2).history
    assert np.array_equal(model.params, before) and went_on["loss"][-1] < went_on["loss"][0]
    assert quiet(t, X, Y, epochs=4, initial_epoch=2).history == went_on
    assert np.array_equal(model.params, other.model.params)


def test_masked_arrays_are_refused() -> None:
    t, masked = trainer(), np.ma.masked_array(X, X > 0)
    calls: tuple[Any, ...] = (lambda: t.predict(masked), lambda: t.evaluate(masked, Y), lambda: quiet(t, [(masked, Y)]))
    for call in calls:
        with pytest.raises(TypeError, match=r"x: expected a plain array, got a masked array, .* pass x.filled"):
            call()


@pytest.mark.parametrize("x", [None, 3.0])
def test_what_has_no_rows_is_refused(x: Any) -> None:
    with pytest.raises(ValueError, match=r"x: expected rows, got shape \(\)"):
        trainer().predict(x)


def test_a_loss_that_is_replaced_brings_its_ignored_label() -> None:
    y = np.where(np.arange(len(Y)) < 30, 0, Y)
    loss = partial(sp.losses.softmax_cross_entropy, ignore_index=0)
    t = trainer()
    t.loss = loss
    assert t.evaluate(X, y, batch_size=10)["loss"] == pytest.approx(trainer(loss=loss).evaluate(X, y)["loss"])


def sequences(loss: Any = None) -> Any:
    return trainer(nn.Sequential([nn.Dense(6), nn.Reshape((3, 2))], 5, seed=1), loss, partial(sp.SGD), lr=0.1)


def test_weights_of_sequences() -> None:
    """A weight per row is that of all its labels; factors of classes multiply them."""
    y = np.random.default_rng(1).integers(0, 2, (len(X), 3))
    by_row = np.random.default_rng(2).random(len(X))
    by_label = np.repeat(by_row[:, None], 3, axis=1)
    a, b = sequences(), sequences()
    assert quiet(a, X, y, sample_weight=by_row).history == quiet(b, X, y, sample_weight=by_label).history
    assert np.array_equal(a.model.params, b.model.params)
    c, d = sequences(), sequences()
    quiet(c, X, y, sample_weight=by_row, class_weight={1: 3.0})
    quiet(d, X, y, sample_weight=by_label * np.where(y == 1, 3.0, 1.0))
    assert np.allclose(c.model.params, d.model.params, rtol=1e-5)
    with pytest.raises(ValueError, match=r"sample_weight: expected numbers of shape \(32, 3\), got float64 \(32, 2\)"):
        quiet(sequences(), X, y, sample_weight=by_label[:, :2])


@pytest.mark.parametrize("ignored", [-100, 1])
def test_ignored_labels_have_no_class(ignored: int) -> None:
    y = np.where(np.arange(len(Y)) % 3 == 0, ignored, Y)
    loss = partial(sp.losses.softmax_cross_entropy, ignore_index=ignored)
    counted = y[y != ignored]
    factors = {int(k): len(counted) / (len(np.unique(counted)) * np.sum(counted == k)) for k in np.unique(counted)}
    by_hand = quiet(trainer(loss=loss), X, y, class_weight=factors).history["loss"]
    assert by_hand == pytest.approx(quiet(trainer(loss=loss), X, y, class_weight="balanced").history["loss"])


@pytest.mark.parametrize("name", ["loss", "lr", "val_f1"])
def test_metrics_with_the_historys_names(name: str) -> None:
    with pytest.raises(ValueError, match=f"metrics: the name '{name}' is the history's own"):
        trainer(metrics={name: accuracy})
