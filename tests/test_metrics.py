"""Metrics against values worked out by hand and against scikit-learn on generated inputs."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import steepest as sp
from steepest import metrics, nn
from steepest.train import Trainer

SKLEARN = {
    "accuracy": "accuracy_score",
    "average_precision": "average_precision_score",
    "confusion_matrix": "confusion_matrix",
    "f1": "f1_score",
    "log_loss": "log_loss",
    "mae": "mean_absolute_error",
    "mse": "mean_squared_error",
    "precision": "precision_score",
    "r2": "r2_score",
    "recall": "recall_score",
    "rmse": "root_mean_squared_error",
}
ALPHABETS: list[list[Any]] = [
    [0, 1],
    [False, True],
    [-1, 1],
    [0.0, 1.0, 2.0],
    [3, 1, 4, 15, 92],
    ["ham", "spam"],
    ["cat", "dog", "pig", ""],
]
PRF = ("precision", "recall", "f1")


def assert_equal_to_sklearn(name: str, *args: Any, **options: Any) -> None:
    theirs = getattr(pytest.importorskip("sklearn.metrics"), SKLEARN[name])
    extra = {"zero_division": 0} if name in PRF else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = theirs(*args, **options, **extra)
    got = getattr(metrics, name)(*args, **options)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
    if name == "confusion_matrix":
        assert got.dtype == expected.dtype
    else:
        assert type(got) is float


def weights(n: int) -> st.SearchStrategy[Any]:
    some = st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.7]), min_size=n, max_size=n)
    ints = st.lists(st.integers(0, 3), min_size=n, max_size=n)
    return st.none() | some.filter(any) | ints.filter(any)


def with_absent(alphabet: list[Any]) -> Any:
    return np.array([*alphabet[::-1], "none"] if isinstance(alphabet[0], str) else [*alphabet, 7])


@st.composite
def labelled(draw: st.DrawFn) -> tuple[Any, Any, Any, list[Any]]:
    alphabet = draw(st.sampled_from(ALPHABETS))
    n = draw(st.integers(1, 25))
    letters = st.lists(st.sampled_from(alphabet), min_size=n, max_size=n)
    true, predicted = np.array(draw(letters)), np.array(draw(letters))
    return true, predicted, draw(weights(n)), alphabet


@st.composite
def numbers(draw: st.DrawFn) -> tuple[Any, Any, Any]:
    n, k = draw(st.integers(1, 20)), draw(st.integers(1, 3))
    entries = st.lists(st.integers(-20, 20), min_size=n * k, max_size=n * k)
    scale = draw(st.sampled_from([1, 0.1, 1e6]))
    true, predicted = (np.array(draw(entries)).reshape(n, k) * scale for _ in range(2))
    if k == 1 and draw(st.booleans()):
        true, predicted = true[:, 0], predicted[:, 0]
    return true, predicted, draw(weights(n))


@st.composite
def scored(draw: st.DrawFn, columns: int) -> tuple[Any, Any]:
    n = draw(st.integers(columns, 25))
    tied = st.integers(-3, 3).map(float)
    entries = st.lists(tied | st.floats(-1, 1), min_size=n * columns, max_size=n * columns)
    return np.array(draw(entries)).reshape(n, columns), draw(weights(n))


@settings(deadline=None)
@given(labelled())
def test_labels_equal_sklearn(case: tuple[Any, Any, Any, list[Any]]) -> None:
    true, predicted, w, alphabet = case
    assert_equal_to_sklearn("accuracy", true, predicted, sample_weight=w)
    assert_equal_to_sklearn("confusion_matrix", true, predicted, sample_weight=w)
    listed = with_absent(alphabet)
    assert_equal_to_sklearn("confusion_matrix", true, predicted, labels=listed, sample_weight=w)


@settings(deadline=None, max_examples=200)
@given(labelled(), st.sampled_from(PRF), st.sampled_from(["micro", "macro", "weighted"]), st.data())
def test_averages_equal_sklearn(
    case: tuple[Any, Any, Any, list[Any]], name: str, average: str, data: st.DataObject
) -> None:
    true, predicted, w, alphabet = case
    options: dict[str, Any] = {"average": average, "sample_weight": w}
    assert_equal_to_sklearn(name, true, predicted, **options)
    listed = with_absent(alphabet)
    labels = data.draw(st.sampled_from([listed, listed[:1], listed[1:], listed[-1:]]))
    assert_equal_to_sklearn(name, true, predicted, labels=labels, **options)
    if len(alphabet) == 2:
        pos_label = data.draw(st.sampled_from(alphabet))
        if pos_label in (*true, *predicted):
            assert_equal_to_sklearn(name, true, predicted, pos_label=pos_label, sample_weight=w)


@settings(deadline=None)
@given(numbers())
def test_regression_equals_sklearn(case: tuple[Any, Any, Any]) -> None:
    true, predicted, w = case
    weighed = true if w is None else true[np.array(w) > 0]
    varied = np.ptp(weighed, axis=0).all()  # of equal values, scikit-learn's r2 scores the rounding of the mean
    for name in ("mse", "rmse", "mae", *(["r2"] if varied else [])):
        assert_equal_to_sklearn(name, true, predicted, sample_weight=w)
        assert_equal_to_sklearn(name, true, true, sample_weight=w)


@settings(deadline=None)
@given(scored(1), st.data())
def test_average_precision_of_two_classes_equals_sklearn(case: tuple[Any, Any], data: st.DataObject) -> None:
    score, w = case
    two: list[list[Any]] = [[0, 1], ["ham", "spam"], [False, True]]
    alphabet = data.draw(st.sampled_from(two))
    letters = st.lists(st.sampled_from(alphabet), min_size=len(score), max_size=len(score))
    true = np.array(data.draw(letters))
    for pos_label in alphabet:
        options = {"pos_label": pos_label, "sample_weight": w}
        assert_equal_to_sklearn("average_precision", true, score[:, 0], **options)
        ours = metrics.average_precision(true[:, None], score, **options)
        assert ours == metrics.average_precision(true, score[:, 0], **options)


@settings(deadline=None)
@given(scored(3), st.sampled_from(["macro", "micro", "weighted"]), st.data())
def test_average_precision_of_columns_equals_sklearn(case: tuple[Any, Any], average: Any, data: st.DataObject) -> None:
    score, w = case
    options = {"average": average, "sample_weight": w}
    rows = st.lists(st.integers(0, 1), min_size=score.size, max_size=score.size)
    indicators = np.array(data.draw(rows)).reshape(score.shape)
    assert_equal_to_sklearn("average_precision", indicators, score, **options)
    rest = st.lists(st.integers(0, 2), min_size=len(score) - 3, max_size=len(score) - 3)
    true = np.array(["a", "b", "c"])[[0, 1, 2, *data.draw(rest)]]
    assert_equal_to_sklearn("average_precision", true, score, **options)


@settings(deadline=None)
@given(st.integers(2, 4), st.integers(0, 2**32 - 1), st.data())
def test_log_loss_equals_sklearn(k: int, seed: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 20))
    p = np.random.default_rng(seed).dirichlet(np.full(k, 0.1), n)
    p[0] = np.eye(k)[0]
    p /= p.sum(axis=1, keepdims=True)
    true = np.array(data.draw(st.lists(st.integers(0, k - 1), min_size=n, max_size=n)))
    w = data.draw(weights(n))
    options = {"labels": list(range(k)), "sample_weight": w}
    assert_equal_to_sklearn("log_loss", true, p, **options)
    assert_equal_to_sklearn("log_loss", np.eye(k, dtype=int)[true], p, sample_weight=w)
    if k == 2:
        assert_equal_to_sklearn("log_loss", true, p[:, 1], **options)
        assert_equal_to_sklearn("log_loss", true, p[:, 1:], **options)
    if len(np.unique(true)) == k:
        names = np.array(["ab", "b", "c", "d"])[true]
        assert_equal_to_sklearn("log_loss", names, p, sample_weight=w)


nan = float("nan")
TRUE, PRED = [0, 0, 1, 1, 1, 2], [0, 1, 1, 1, 0, 0]
HAND: list[tuple[str, tuple[Any, ...], dict[str, Any], Any]] = [
    ("accuracy", (TRUE, PRED), {}, 1 / 2),
    ("accuracy", (TRUE, PRED), {"sample_weight": [1, 0, 0, 0, 2, 1]}, 1 / 4),
    ("accuracy", (["a", "b"], np.array(["a", "c"], dtype=object)), {}, 1 / 2),
    ("accuracy", ([True, False], [1, 1]), {}, 1 / 2),
    ("confusion_matrix", (TRUE, PRED), {}, [[1, 1, 0], [1, 2, 0], [1, 0, 0]]),
    ("confusion_matrix", (TRUE, PRED), {"labels": [9, 1, 0]}, [[0, 0, 0], [0, 2, 1], [0, 1, 1]]),
    ("confusion_matrix", ([0, 1], [5, 1]), {"labels": [0, 1]}, [[0, 0], [0, 1]]),
    ("confusion_matrix", ([0], [0]), {"sample_weight": [0.5]}, [[0.5]]),
    ("confusion_matrix", ([0], [0]), {"sample_weight": [3]}, [[3]]),
    ("precision", (TRUE, PRED), {"average": "micro"}, 1 / 2),
    ("precision", (TRUE, PRED), {"average": "macro"}, (1 / 3 + 2 / 3 + 0) / 3),
    ("precision", (TRUE, PRED), {"average": "weighted"}, (2 / 3 + 3 * 2 / 3 + 0) / 6),
    ("precision", ([0, 0, 1], [2, 3, 2]), {"average": "weighted", "labels": [2, 3]}, 0.0),
    ("recall", (TRUE, PRED), {"average": "macro"}, (1 / 2 + 2 / 3 + 0) / 3),
    ("recall", (TRUE, PRED), {"average": "macro", "labels": [0, 1, 2, 3]}, (1 / 2 + 2 / 3) / 4),
    ("f1", (TRUE, PRED), {"average": "macro"}, (2 / 5 + 2 / 3 + 0) / 3),
    ("f1", (TRUE, PRED), {"average": "weighted"}, (2 * 2 / 5 + 3 * 2 / 3 + 0) / 6),
    ("f1", ([1, 0], [1, 0]), {}, 1.0),
    ("precision", ([0, 0], [0, 0]), {}, 0.0),
    ("recall", ([0, 0], [1, 0]), {}, 0.0),
    ("f1", ([0, 0], [0, 0]), {}, 0.0),
    ("f1", ([2, 2], [1, 2]), {"pos_label": 2, "sample_weight": [1, 3]}, 6 / 7),
    ("average_precision", ([0, 1, 0, 1], [1, 2, 3, 4]), {}, (1 + 2 / 3) / 2),
    ("average_precision", ([1, 0], [0.5, 0.5]), {}, 1 / 2),
    ("average_precision", ([[0, 0]], [[0.5, 0.4]]), {"average": "weighted"}, 0.0),
    (
        "average_precision",
        ([[1, 0], [0, 1]], [[0.9, 0.8], [0.6, 0.7]]),
        {"average": "micro", "sample_weight": [1, 3]},
        1 / 4 + 3 / 4 * 4 / 5,
    ),
    ("average_precision", ([0, 0], [0.1, 0.5]), {}, 0.0),
    ("average_precision", ([1, 0], np.array([1, 2], np.uint8)), {"sample_weight": [3, 1]}, 3 / 4),
    ("average_precision", ([0, 1, 2], np.eye(3)), {}, 1.0),
    ("average_precision", ([[1, 0], [1, 0]], np.eye(2)), {}, 1 / 2),
    ("average_precision", ([[1, 0], [1, 0]], np.eye(2)), {"average": "weighted"}, 1.0),
    ("log_loss", ([0, 1], [[0.5, 0.5], [0.75, 0.25]]), {}, math.log(8) / 2),
    ("log_loss", ([0, 1], [0.5, 0.25]), {"sample_weight": [0, 1]}, math.log(4)),
    ("log_loss", ([1], [0.0]), {"labels": [0, 1]}, 52 * math.log(2)),
    ("log_loss", ([1], np.zeros(1, np.float32)), {"labels": [0, 1]}, 23 * math.log(2)),
    ("mse", ([1, 2], [1, 4]), {}, 2.0),
    ("mse", ([1, 2], [[1], [4]]), {}, 2.0),
    ("mse", ([1, 2], [1, 4]), {"sample_weight": [3, 1]}, 1.0),
    ("rmse", ([[0, 0], [0, 0]], [[3, 1], [3, 1]]), {}, 2.0),
    ("mae", ([1, 2], [1, 4]), {}, 1.0),
    ("r2", ([1, 2, 3], [3, 2, 1]), {}, -3.0),
    ("r2", ([[1, 5], [3, 5]], [[1, 5], [3, 6]]), {}, 0.5),
    ("r2", ([2, 2], [2, 2]), {}, 1.0),
    ("r2", ([0, 2], [0, 1]), {"sample_weight": [1, 3]}, 0.0),
    ("r2", ([1], [1]), {}, nan),
    ("r2", ([0.1] * 3, [0.2] * 3), {}, 0.0),
    ("r2", ([0.1] * 3, [0.1] * 3), {}, 1.0),
    ("r2", ([[0.1, 1]] * 3 + [[9, 3]], [[0.2, 1]] * 3 + [[9, 3]]), {"sample_weight": [1, 1, 1, 0]}, 0.5),
]


@pytest.mark.parametrize(("name", "args", "options", "expected"), HAND)
def test_values_by_hand(name: str, args: Any, options: Any, expected: Any) -> None:
    got = getattr(metrics, name)(*args, **options)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-15)
    assert np.asarray(got).dtype == np.asarray(expected).dtype


def test_lower_precision_is_computed_in_double() -> None:
    true = np.full(100_000, 0.1, np.float32)
    assert metrics.mse(true, np.zeros_like(true)) == pytest.approx(float(true[0]) ** 2, rel=1e-12)
    assert metrics.r2(*np.array([[0, 60000], [60000, 0]], np.float16)) == -3.0


@pytest.mark.parametrize("capacity", [1, 90, 1 << 16])
def test_training_and_evaluation_score_all_rows_at_once(monkeypatch: Any, capacity: int) -> None:
    monkeypatch.setattr("steepest._scoring.CAPACITY", capacity)
    x = np.random.default_rng(0).normal(size=(200, 4))
    classes = np.sort(np.arange(200) % 5)  # in parts, r2 and the average precision would be something else
    for loss, y, metric, outputs in (
        (sp.losses.softmax_cross_entropy, classes, metrics.average_precision, 5),
        (sp.losses.softmax_cross_entropy, classes, metrics.confusion_matrix, 5),
        (sp.losses.mse, np.linspace(0, 9, 200), metrics.r2, 1),
    ):
        seen: Any = []

        def recorded(y_true: Any, y_score: Any, metric: Any = metric, seen: Any = seen) -> float:
            seen.append((y_true.copy(), y_score.copy()))
            return float(np.mean(metric(y_true, y_score)))

        recorded.takes = "decisions" if metric is metrics.confusion_matrix else "probabilities"  # type: ignore[attr-defined]
        model = nn.Sequential([nn.Dense(outputs)], 4, dtype=np.float64)
        t = Trainer(model, loss, sp.SGD(model.param_groups(), lr=0.0), {"m": recorded})
        predicted: Any = t.predict(x)
        if metric is metrics.average_precision:
            predicted = np.exp(predicted) / np.exp(predicted).sum(1, keepdims=True)
        predicted = predicted.argmax(1) if metric is metrics.confusion_matrix else predicted.squeeze()
        expected = pytest.approx(np.mean(metric(y, predicted)), rel=1e-9)
        assert t.evaluate(x, y, batch_size=16)["m"] == expected
        fitted = t.fit(x, y, validation_data=(x, y), shuffle=False, batch_size=7, verbose=False)
        assert fitted.history["m"] == fitted.history["val_m"] == [expected]
        assert len(seen) == 3
        for y_true, y_pred in seen:
            np.testing.assert_array_equal(y_true, y)
            np.testing.assert_allclose(y_pred, predicted, rtol=1e-9)


def test_batches_of_labels_in_several_dtypes() -> None:
    model = nn.Sequential([nn.Dense(300)], 2)
    model.params[...] = 0
    model.params[-1] = 1  # the last bias: class 299
    t = Trainer(model, sp.losses.softmax_cross_entropy, sp.SGD(model.param_groups()), [metrics.accuracy])
    x = np.zeros((2, 2), np.float32)
    assert t.evaluate([(x, np.array([7, 43], np.uint8)), (x, np.array([299, 299]))])["accuracy"] == 0.5


def test_labels_that_numpy_would_widen() -> None:
    assert metrics.accuracy(np.array([255, 1], np.uint8), np.array([255, -1])) == 0.5
    assert metrics.f1(np.array(["a", "bb"]), np.array(["a", "b"]), average="micro") == 0.5


def test_log_loss_warns_of_rows_that_do_not_sum_to_one() -> None:
    with pytest.warns(UserWarning, match="rows that sum to 1"):
        metrics.log_loss([0, 1], [[0.5, 0.6], [0.5, 0.5]])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.precision(["a"], ["a"]), ValueError, "expected one of ['a'], got 1; pass pos_label=..."),
        (lambda m: m.accuracy([], []), ValueError, "y_true: expected at least one label, got none"),
        (
            lambda m: m.accuracy([1, 2], [1]),
            ValueError,
            "y_pred: expected 2 labels as in y_true, got 1",
        ),
        (lambda m: m.accuracy([1, 0], [0.2, 0.7]), ValueError, "y_pred: expected class labels"),
        (lambda m: m.accuracy([1.0, nan], [0, 0]), ValueError, "y_true: expected class labels"),
        (
            lambda m: m.accuracy([1, 0], np.eye(2)),
            ValueError,
            "y_pred: expected class labels (n,), got (2, 2); of scores, take argmax(axis=1)",
        ),
        (
            lambda m: m.accuracy([1, 0], ["1", "0"]),
            TypeError,
            "y_pred: expected the kind of y_true",
        ),
        (lambda m: m.accuracy([1j], [1j]), TypeError, "y_true: expected integers, booleans or"),
        (lambda m: m.accuracy([None], ["a"]), TypeError, "y_true: expected integers, booleans or"),
        (
            lambda m: m.accuracy([1], [1], sample_weight=[1, 2]),
            ValueError,
            "sample_weight: expected one per sample, (1,), got (2,)",
        ),
        (
            lambda m: m.accuracy([1], [1], sample_weight=[-1.0]),
            ValueError,
            "sample_weight: expected finite numbers >= 0 and not all of them 0",
        ),
        (lambda m: m.mse([1], [1], sample_weight=[0]), ValueError, "not all of them 0"),
        (lambda m: m.mse([1], [1], sample_weight=[nan]), ValueError, "sample_weight: expected fin"),
        (lambda m: m.mse([1], [1], sample_weight=["a"]), TypeError, "sample_weight: expected real"),
        (
            lambda m: m.confusion_matrix([1], [1], labels=[2, 3]),
            ValueError,
            "labels: expected at least one that is in y_true, got [2, 3]",
        ),
        (
            lambda m: m.confusion_matrix([1], [1], labels=[1, 1]),
            ValueError,
            "labels: expected each class once, got [1, 1]",
        ),
        (
            lambda m: m.confusion_matrix([1], [1], labels=["1"]),
            TypeError,
            "labels: expected the kind of y_true",
        ),
        (
            lambda m: m.precision([0, 1, 2], [0, 1, 2]),
            ValueError,
            "y_true: expected at most two classes, got 3",
        ),
        (
            lambda m: m.recall([0, 1], [0, 1], pos_label=2),
            ValueError,
            "pos_label: expected one of [0, 1], got 2",
        ),
        (
            lambda m: m.f1(["a"], ["a"]),
            ValueError,
            "pos_label: expected one of ['a'], got 1",
        ),
        (
            lambda m: m.f1([0, 1], [0, 1], labels=[0]),
            TypeError,
            "labels: expected None with average='binary'",
        ),
        (
            lambda m: m.f1([0, 1], [0, 1], average="samples"),
            ValueError,
            "average: expected 'binary', 'micro', 'macro' or 'weighted', got 'samples'",
        ),
        (
            lambda m: m.average_precision([0, 1, 2], [0.1, 0.2, 0.3]),
            ValueError,
            "y_true: expected at most two classes, got 3",
        ),
        (lambda m: m.average_precision([0, 1], [0.1]), ValueError, "y_score: expected (n,) scores"),
        (lambda m: m.average_precision([0, 1], [0.1, nan]), ValueError, "y_score: expected finite"),
        (
            lambda m: m.average_precision([0, 1, 1], np.eye(3)),
            ValueError,
            "one column for each that is in y_true, (3, 2), got (3, 3)",
        ),
        (
            lambda m: m.average_precision([[0, 2]], [[0.1, 0.2]]),
            ValueError,
            "y_true: expected 0 and 1 in an array of shape (1, 2)",
        ),
        (
            lambda m: m.average_precision([[0, 1]], [[0.1, 0.2]], average="binary"),
            ValueError,
            "average: expected 'micro', 'macro' or 'weighted', got 'binary'",
        ),
        (
            lambda m: m.average_precision([[0, 1]], [[0.1, 0.2]], pos_label=0),
            ValueError,
            "pos_label: expected 1",
        ),
        (
            lambda m: m.log_loss([0, 1], [2.0, -1.0]),
            ValueError,
            "y_proba: expected numbers in [0, 1], got -1.0 to 2.0",
        ),
        (lambda m: m.log_loss([0, 0], [0.1, 0.2]), ValueError, "labels: expected at least two"),
        (
            lambda m: m.log_loss([0, 1], np.full((2, 4), 0.25)),
            ValueError,
            "y_proba: expected a column for each of the 2 classes and a row for each of the 2",
        ),
        (
            lambda m: m.log_loss([0, 1], [0.1, 0.2], labels=[1, 0]),
            ValueError,
            "labels: expected increasing order, got [1, 0]",
        ),
        (
            lambda m: m.log_loss([0, 5], [0.1, 0.2], labels=[0, 1]),
            ValueError,
            "y_true: expected one of labels=[0, 1], got [5]",
        ),
        (lambda m: m.mse([1, 2], [1]), ValueError, "y_pred: expected shape (2,) as y_true"),
        (lambda m: m.mae([[1, 2]], [1, 2]), ValueError, "y_pred: expected shape (1, 2) as y_true"),
        (lambda m: m.rmse([], []), ValueError, "y_true: expected at least one number"),
        (lambda m: m.r2([1, nan], [1, 2]), ValueError, "y_true: expected finite numbers"),
        (lambda m: m.r2(["1"], [1]), TypeError, "y_true: expected real numbers, got <U1"),
        (lambda m: m.mse(1.0, 1.0), ValueError, "y_true: expected at least one number"),
    ],
)
def test_refuses(call: Callable[[Any], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call(metrics)


def test_every_public_function_has_a_namesake_and_values_by_hand() -> None:
    assert set(SKLEARN) == {name for name, *_ in HAND} == set(metrics.__all__)
