"""Metrics: functions `f(y_true, y_pred) -> float` with scikit-learn's meaning.

Each equals its namesake in `sklearn.metrics` to 1e-12 on float64 (everything is computed in double,
where scikit-learn stays in the input's precision). All take `sample_weight`: one number >= 0 per
sample, not all of them 0; by default every sample weighs 1. What scikit-learn returns together with
a warning (a class that is absent, and the like) is returned here without one.

Class labels are arrays of shape (n,) or (n, 1) of integers, booleans, whole floats or strings, the
same kind in both. All functions raise `ValueError` where lengths differ, nothing is given, or a
number is NaN or infinite, and `TypeError` for arrays of another kind.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "accuracy",
    "average_precision",
    "confusion_matrix",
    "f1",
    "log_loss",
    "mae",
    "mse",
    "precision",
    "r2",
    "recall",
    "rmse",
]

Array = NDArray[Any]
Floats = NDArray[np.float64]
Average = Literal["binary", "micro", "macro", "weighted"]


def accuracy(y_true: ArrayLike, y_pred: ArrayLike, *, sample_weight: ArrayLike | None = None) -> float:
    """The fraction of labels that are right.

        sum_i w_i [y_i = p_i] / sum_i w_i

    `y_true` and `y_pred` are class labels, (n,). As `sklearn.metrics.accuracy_score`.

    >>> accuracy(["cat", "dog", "dog", "cat"], ["cat", "dog", "cat", "cat"])
    0.75
    """
    true, predicted = _label_pair(y_true, y_pred)
    return float(np.average(true == predicted, weights=_weights(sample_weight, len(true))))


def confusion_matrix(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> Array:
    """How often, or with how much weight, each true class was predicted as each class.

        C[j, k] = sum_i w_i [y_i = labels_j] [p_i = labels_k]

    `y_true` and `y_pred` are class labels, (n,). `labels`, by default all that occur, sorted, gives
    the k rows (true) and columns (predicted) in this order: one that does not occur has zeros, and
    a sample with a label that is not listed is left out. Returns (k, k), int64, or float64 if the
    weights are floats. Raises `ValueError` if no true label is listed. As
    `sklearn.metrics.confusion_matrix`.

    >>> confusion_matrix([0, 0, 1, 1], [0, 1, 1, 1], labels=[0, 1, 2])
    array([[1, 1, 0],
           [0, 2, 0],
           [0, 0, 0]])
    """
    true, predicted = _label_pair(y_true, y_pred)
    weights = _weights(sample_weight, len(true))
    classes = _classes(labels, true, predicted)
    k = len(classes)
    row, row_listed = _encode(true, classes)
    column, column_listed = _encode(predicted, classes)
    if not row_listed.any():
        raise ValueError(f"labels: expected at least one that is in y_true, got {classes.tolist()}")
    cell = np.where(row_listed & column_listed, row * k + column, k * k)
    counts = np.bincount(cell, weights, minlength=k * k + 1)[:-1].reshape(k, k)
    exact = weights is None or weights.dtype.kind in "biu"
    return counts.astype(np.int64) if exact else counts


def precision(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    average: Average = "binary",
    pos_label: Any = 1,
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Of what was predicted as a class, the fraction that is of it.

        TP / (TP + FP)                   0 where nothing was predicted as the class

    `y_true` and `y_pred` are class labels, (n,). `average` says of which class:

    - `"binary"`: of `pos_label`; there must be at most two classes.
    - `"micro"`: of all together, TP and FP summed over the classes.
    - `"macro"`: the mean over the classes.
    - `"weighted"`: the mean over the classes, each weighted by its true samples (unweighted if
      there are none).

    The classes are those that occur in `y_true` or `y_pred`, or `labels`: an absent one that is
    listed counts as 0, and samples of classes that are not listed count only against the others.
    Raises `ValueError` for more than two classes, two without `pos_label`, or strings unless
    `pos_label` is one, if `average` is `"binary"`, and `TypeError` for `labels` with it. As
    `sklearn.metrics.precision_score` with `zero_division=0`.

    >>> precision([0, 1, 1, 0], [1, 1, 1, 0])
    0.6666666666666666
    >>> precision([0, 1, 2], [0, 1, 1], average="macro")
    0.5
    """
    tp, predicted, true = _counts(y_true, y_pred, average, pos_label, labels, sample_weight)
    return _averaged(tp, predicted, true, average)


def recall(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    average: Average = "binary",
    pos_label: Any = 1,
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Of what is of a class, the fraction that was predicted as it.

        TP / (TP + FN)                   0 where nothing is of the class

    Arguments, averages, absent classes and errors as in `precision`. As
    `sklearn.metrics.recall_score` with `zero_division=0`.

    >>> recall([0, 1, 1, 1], [1, 1, 1, 0])
    0.6666666666666666
    """
    tp, _, true = _counts(y_true, y_pred, average, pos_label, labels, sample_weight)
    return _averaged(tp, true, true, average)


def f1(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    average: Average = "binary",
    pos_label: Any = 1,
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """The harmonic mean of precision and recall.

        2 TP / (2 TP + FP + FN)          0 where the class neither is nor was predicted

    Arguments, averages, absent classes and errors as in `precision`; the mean over classes is that
    of their F1 scores. As `sklearn.metrics.f1_score` with `zero_division=0`.

    >>> f1([0, 1, 1, 1], [1, 1, 1, 0])
    0.6666666666666666
    """
    tp, predicted, true = _counts(y_true, y_pred, average, pos_label, labels, sample_weight)
    return _averaged(2.0 * tp, predicted + true, true, average)


def average_precision(
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    average: Literal["micro", "macro", "weighted"] = "macro",
    pos_label: Any = 1,
    sample_weight: ArrayLike | None = None,
) -> float:
    """The area under the precision-recall curve, summed in steps, without interpolation.

        sum_j (R_j - R_(j-1)) P_j        over the distinct scores, the highest first

    where P_j and R_j are the precision and recall of calling all with at least the j-th score
    positive. `y_score` are scores of any scale, higher for the likelier, and `y_true` either

    - at most two class labels, (n,), for scores (n,) of `pos_label`;
    - class labels, (n,), for scores (n, k) of the k > 2 classes that occur, sorted;
    - 0 and 1, (n, k), for scores (n, k) of k labels that may occur together, or not at all.

    With k columns, `average` is taken over their scores: the plain mean (`"macro"`, the default),
    weighted by how many are positive (`"weighted"`), or all columns are scored as one (`"micro"`).
    A class without positive samples has average precision 0. Raises `ValueError` for shapes that
    are none of these, and for `pos_label` with k columns or if neither of two labels is it. As
    `sklearn.metrics.average_precision_score`.

    >>> round(average_precision([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]), 4)
    0.8333
    """
    score = _column(_numbers("y_score", y_score))
    weights = _weights(sample_weight, len(score))
    positive = _column(np.asarray(y_true))
    if score.ndim == 1:
        (positive,) = _is_positive(pos_label, _labels("y_true", positive))
    elif positive.ndim == 1:
        true = _labels("y_true", positive)
        positive = true[:, None] == np.unique(true)
    else:
        positive = _indicators("y_true", positive)
    if positive.shape != score.shape:
        raise ValueError(
            "y_score: expected (n,) scores of two classes or (n, k) of k classes, one column for "
            f"each that is in y_true, {positive.shape}, got {score.shape}"
        )
    w = np.ones(len(score)) if weights is None else weights.astype(np.float64)
    if score.ndim == 1:
        return _step_area(positive, score, w)
    if pos_label != 1:
        raise ValueError(f"pos_label: expected 1, its default, with k columns, got {pos_label!r}")
    if average == "micro":
        return _step_area(positive.ravel(), score.ravel(), np.repeat(w, score.shape[1]))
    if average not in ("macro", "weighted"):
        raise ValueError(f"average: expected 'micro', 'macro' or 'weighted', got {average!r}")
    areas = np.array([_step_area(p, s, w) for p, s in zip(positive.T, score.T, strict=True)])
    support = w @ positive
    if average == "macro":
        return float(areas.mean())
    return float(np.average(areas, weights=support)) if support.any() else 0.0


def _step_area(positive: Array, score: Floats, weights: Floats) -> float:
    order = np.argsort(-score, kind="stable")
    last_of_score = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    called = np.cumsum(weights[order])[last_of_score]
    tp = np.cumsum((weights * positive)[order])[last_of_score]
    return float(_ratio(tp, called) @ np.diff(_ratio(tp, tp[-1:]), prepend=0.0))


def log_loss(
    y_true: ArrayLike,
    y_proba: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """The negative logarithm of the probability given to the true class, on average.

        -sum_i w_i ln p_i[y_i] / sum_i w_i

    `y_proba` are probabilities, (n, k) with a column for each class, sorted, or (n,) of the second
    of two classes; they are clipped to [eps, 1 - eps] with the machine epsilon of their dtype.
    `y_true` are class labels, (n,), or one-hot, (n, k). `labels` lists the classes in increasing
    order, by default those that occur in `y_true`: give it wherever one may be absent. Raises
    `ValueError` for probabilities outside [0, 1], a number of columns that is not that of the
    classes, a single class or an unlisted label; warns where a row does not sum to 1. As
    `sklearn.metrics.log_loss`.

    >>> round(log_loss(["no", "yes", "yes"], [0.1, 0.9, 0.8]), 6)
    0.144622
    """
    given = np.asarray(y_proba)
    p = _numbers("y_proba", given)
    if p.min() < 0.0 or p.max() > 1.0:
        raise ValueError(f"y_proba: expected numbers in [0, 1], got {p.min()} to {p.max()}")
    p = _column(p)
    if p.ndim == 1:
        p = np.stack([1.0 - p, p], axis=1)
    weights = _weights(sample_weight, len(p))
    eps = float(np.finfo(given.dtype if given.dtype.kind == "f" else np.float64).eps)
    if not np.allclose(p.sum(axis=1), 1.0, rtol=eps**0.5):
        warnings.warn("y_proba: expected rows that sum to 1, got others", stacklevel=2)
    onehot = _onehot(np.asarray(y_true), labels)
    if onehot.shape != p.shape:
        raise ValueError(
            f"y_proba: expected a column for each of the {onehot.shape[1]} classes and a row for "
            f"each of the {len(onehot)} samples, got {p.shape}; list absent classes in labels"
        )
    ln = np.log(np.clip(p, eps, 1.0 - eps))
    return float(np.average(-np.sum(ln, axis=1, where=onehot), weights=weights))


def _onehot(y_true: Array, labels: ArrayLike | None) -> Array:
    y_true = _column(y_true)
    if y_true.ndim == 2:
        return _indicators("y_true", y_true)
    true = _labels("y_true", y_true)
    classes = _classes(labels, true)
    if len(classes) < 2:
        raise ValueError(f"labels: expected at least two classes, got {classes.tolist()}")
    if (classes[1:] < classes[:-1]).any():
        raise ValueError(f"labels: expected increasing order, got {classes.tolist()}")
    index, listed = _encode(true, classes)
    if not listed.all():
        unlisted = np.unique(true[~listed]).tolist()
        raise ValueError(f"y_true: expected one of labels={classes.tolist()}, got {unlisted}")
    return np.asarray(index[:, None] == np.arange(len(classes)))


def mse(y_true: ArrayLike, y_pred: ArrayLike, *, sample_weight: ArrayLike | None = None) -> float:
    """The mean squared error.

        sum_i w_i (y_i - p_i)^2 / sum_i w_i

    `y_true` and `y_pred` are numbers of one shape, (n,) or (n, k), where (n,) and (n, 1) are the
    same; with k columns, the mean over them. As `sklearn.metrics.mean_squared_error`.

    >>> mse([3.0, -0.5, 2.0, 7.0], [2.5, 0.0, 2.0, 8.0])
    0.375
    """
    true, predicted, weights = _number_pair(y_true, y_pred, sample_weight)
    return float(np.average((true - predicted) ** 2, axis=0, weights=weights).mean())


def rmse(y_true: ArrayLike, y_pred: ArrayLike, *, sample_weight: ArrayLike | None = None) -> float:
    """The root of the mean squared error.

        sqrt(sum_i w_i (y_i - p_i)^2 / sum_i w_i)

    Arguments as in `mse`; with k columns, the mean of their roots. As
    `sklearn.metrics.root_mean_squared_error`.

    >>> rmse([0.0, 0.0], [1.0, 7.0])
    5.0
    """
    true, predicted, weights = _number_pair(y_true, y_pred, sample_weight)
    return float(np.sqrt(np.average((true - predicted) ** 2, axis=0, weights=weights)).mean())


def mae(y_true: ArrayLike, y_pred: ArrayLike, *, sample_weight: ArrayLike | None = None) -> float:
    """The mean absolute error.

        sum_i w_i |y_i - p_i| / sum_i w_i

    Arguments as in `mse`. As `sklearn.metrics.mean_absolute_error`.

    >>> mae([3.0, -0.5, 2.0, 7.0], [2.5, 0.0, 2.0, 8.0])
    0.5
    """
    true, predicted, weights = _number_pair(y_true, y_pred, sample_weight)
    return float(np.average(np.abs(true - predicted), axis=0, weights=weights).mean())


def r2(y_true: ArrayLike, y_pred: ArrayLike, *, sample_weight: ArrayLike | None = None) -> float:
    """The coefficient of determination: the share of the variance that is explained.

        1 - sum_i w_i (y_i - p_i)^2 / sum_i w_i (y_i - mean)^2

    with the weighted mean of y. 1 is perfect, 0 as good as that mean, and worse is negative. A
    column whose true values are all the same scores 1 if predicted exactly and 0 otherwise; a
    single sample gives NaN. Arguments as in `mse`; with k columns, the mean of their scores. As
    `sklearn.metrics.r2_score`, which takes rounding of the mean of equal values for variance.

    >>> r2([1.0, 2.0, 3.0], [1.0, 2.0, 4.0])
    0.5
    """
    true, predicted, weights = _number_pair(y_true, y_pred, sample_weight)
    if len(true) < 2:
        return float("nan")
    w = 1.0 if weights is None else weights[:, None]
    weighed = true if weights is None else true[weights > 0]
    residual = np.sum(w * (true - predicted) ** 2, axis=0)
    total = np.sum(w * (true - np.average(true, axis=0, weights=weights)) ** 2, axis=0)
    constant = (total == 0.0) | (np.ptp(weighed, axis=0) == 0.0)  # the mean of equal values may be rounded
    return float(np.where(constant, residual == 0.0, 1.0 - _ratio(residual, total)).mean())


def _counts(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    average: Average,
    pos_label: Any,
    labels: ArrayLike | None,
    sample_weight: ArrayLike | None,
) -> Floats:
    """True positives, predicted and true samples (rows) of each class (columns) to average."""
    true, predicted = _label_pair(y_true, y_pred)
    weights = _weights(sample_weight, len(true))
    if average == "binary":
        if labels is not None:
            raise TypeError("labels: expected None with average='binary'; choose another average")
        true, predicted = _is_positive(pos_label, true, predicted)
        labels = [1]
    elif average not in ("micro", "macro", "weighted"):
        raise ValueError(f"average: expected 'binary', 'micro', 'macro' or 'weighted', got {average!r}")
    classes = _classes(labels, true, predicted)
    k = len(classes)

    def count(index: Array, chosen: Array) -> Floats:
        chosen_weights = None if weights is None else weights[chosen]
        return np.bincount(index[chosen], chosen_weights, minlength=k).astype(np.float64)

    true_index, true_listed = _encode(true, classes)
    index, listed = _encode(predicted, classes)
    counts = np.stack(
        [
            count(index, listed & (true == predicted)),
            count(index, listed),
            count(true_index, true_listed),
        ]
    )
    return counts.sum(axis=1, keepdims=True) if average == "micro" else counts


def _averaged(numerator: Floats, denominator: Floats, support: Floats, average: str) -> float:
    weights = support if average == "weighted" and support.any() else None
    return float(np.average(_ratio(numerator, denominator), weights=weights))


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    zero = denominator == 0.0
    return np.where(zero, 0.0, numerator / np.where(zero, 1.0, denominator))


def _is_positive(pos_label: Any, *labels: Array) -> list[Array]:
    present = np.unique(np.concatenate(labels))
    if len(present) > 2:
        raise ValueError(
            f"y_true: expected at most two classes, got {len(present)}; for more, choose another "
            "average, or give scores with a column for each class"
        )
    listed = pos_label in present.tolist()
    if not listed and (len(present) == 2 or isinstance(pos_label, str) != _is_text(present)):
        raise ValueError(f"pos_label: expected one of {present.tolist()}, got {pos_label!r}; pass pos_label=...")
    return [y == pos_label if listed else np.zeros(len(y), bool) for y in labels]


def _classes(labels: ArrayLike | None, *given: Array) -> Array:
    if labels is None:
        return np.unique(np.concatenate(given))
    classes = _labels("labels", labels)
    if len(np.unique(classes)) < len(classes):
        raise ValueError(f"labels: expected each class once, got {classes.tolist()}")
    if _is_text(classes) != _is_text(given[0]):
        raise TypeError(f"labels: expected the kind of y_true, {given[0].dtype}, got {classes.dtype}")
    return classes


def _encode(y: Array, classes: Array) -> tuple[Array, Array]:
    """The index of each label among the classes, and whether it is one of them."""
    order = np.argsort(classes)
    place = np.searchsorted(classes, y, sorter=order)
    index = order[np.minimum(place, len(classes) - 1)]
    return index, classes[index] == y


def _label_pair(y_true: ArrayLike, y_pred: ArrayLike) -> tuple[Array, Array]:
    true, predicted = _labels("y_true", y_true), _labels("y_pred", y_pred)
    if len(true) != len(predicted):
        raise ValueError(f"y_pred: expected {len(true)} labels as in y_true, got {len(predicted)}")
    if _is_text(true) != _is_text(predicted):
        raise TypeError(f"y_pred: expected the kind of y_true, {true.dtype}, got {predicted.dtype}")
    return true, predicted


def _labels(name: str, values: ArrayLike) -> Array:
    y = _column(np.asarray(values))
    if y.dtype == object and all(isinstance(v, str) for v in y.flat):
        y = y.astype(str)
    if y.ndim != 1:
        raise ValueError(f"{name}: expected class labels (n,), got {y.shape}; of scores, take argmax(axis=1)")
    if y.size == 0:
        raise ValueError(f"{name}: expected at least one label, got none")
    if y.dtype.kind not in "biufUT":
        raise TypeError(f"{name}: expected integers, booleans or strings, got {y.dtype}")
    if y.dtype.kind == "f" and not (np.isfinite(y) & (y == np.floor(y))).all():
        raise ValueError(f"{name}: expected class labels, got fractions; of scores, take score > 0")
    return y


def _is_text(y: Array) -> bool:
    return y.dtype.kind in "UT"


def _indicators(name: str, y: Array) -> Array:
    if y.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected 0 and 1, got {y.dtype}")
    if not np.isin(y, (0, 1)).all():
        raise ValueError(f"{name}: expected 0 and 1 in an array of shape {y.shape}, got others")
    return y.astype(bool)


def _column(y: Array) -> Array:
    return y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y


def _numbers(name: str, values: ArrayLike) -> Floats:
    y = np.asarray(values)
    if y.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected real numbers, got {y.dtype}")
    if y.ndim not in (1, 2) or y.size == 0:
        raise ValueError(f"{name}: expected at least one number, (n,) or (n, k), got {y.shape}")
    if not np.isfinite(y).all():
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
    return y.astype(np.float64, copy=False)


def _number_pair(
    y_true: ArrayLike, y_pred: ArrayLike, sample_weight: ArrayLike | None
) -> tuple[Floats, Floats, Array | None]:
    true, predicted = _numbers("y_true", y_true), _numbers("y_pred", y_pred)
    n = len(true)
    if _column(true).shape != _column(predicted).shape:
        raise ValueError(f"y_pred: expected shape {true.shape} as y_true, got {predicted.shape}")
    return true.reshape(n, -1), predicted.reshape(n, -1), _weights(sample_weight, n)


def _weights(sample_weight: ArrayLike | None, n: int) -> Array | None:
    if sample_weight is None:
        return None
    weights = np.asarray(sample_weight)
    if weights.dtype.kind not in "biuf":
        raise TypeError(f"sample_weight: expected real numbers, got {weights.dtype}")
    if weights.shape != (n,):
        raise ValueError(f"sample_weight: expected one per sample, {(n,)}, got {weights.shape}")
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise ValueError("sample_weight: expected finite numbers >= 0 and not all of them 0")
    return weights.astype(np.float64) if weights.dtype.kind == "f" else weights
