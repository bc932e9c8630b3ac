"""Losses with their gradient: each returns the value, the gradient, and the terms that were summed."""

from __future__ import annotations

import numpy as np

from steepest.reference.arithmetic import Array
from steepest.reference.functions import exp, log, log1p, sgn
from steepest.reference.sums import FEW_CLASSES, ROW_LANES, row_sums, sums_less_one, total, total_of_rows, value

DOWN, UP = 2.0**-64, 2.0**64  # of distances: that of two float64 logits may overflow
# of terms while they are added: the sum of float64's may overflow where the mean does not
TERM_SCALE = {np.dtype(np.float32): 1.0, np.dtype(np.float64): DOWN}


def _scale(reduction: str, weight: float) -> float:
    """What the sum is multiplied with."""
    return 1.0 if reduction == "sum" else 1 / weight if weight > 0 else 0.0


def _one_by_one(weight: Array) -> float:
    result = 0.0
    for w in weight.tolist():
        result += w
    return result


def _sums(terms: Array) -> Array:
    return np.asarray(value(*row_sums(terms)))


def _tops(x: Array) -> Array:
    """Each row's maximum; what is not a number does not count."""
    return np.asarray(np.max(np.where(np.isnan(x), x.dtype.type(-np.inf), x), axis=1))


def _distances(top: Array, x: Array) -> Array:
    """What a row lies below its maximum, times 2^-64."""
    return top[:, None].astype(np.float64) * DOWN - x.astype(np.float64) * DOWN


def _of_rows(losses: Array, weight: Array, weight_sum: float, logits: Array, reduction: str) -> tuple[float, Array]:
    """The mean (or sum) of the rows' losses, and the weighted terms."""
    down = TERM_SCALE[logits.dtype]
    with np.errstate(all="ignore"):
        terms, scaled = (np.where(weight == 0, 0.0, weight * part) for part in (losses, losses * down))
        return total_of_rows(scaled, logits.shape[-1]) * _scale(reduction, weight_sum) / down, terms


def _elementwise(
    terms: Array, derivative: Array, x: Array, reduction: str, sample_weight: Array | None
) -> tuple[float, Array, Array]:
    """The loss, its gradient, and the weighted terms that were summed (all in double)."""
    down = TERM_SCALE[x.dtype]
    scaled = terms * down
    if sample_weight is None:
        scale = _scale(reduction, float(x.size))
        gradient = derivative * scale
    else:
        inner = x.size // max(sample_weight.size, 1)
        scale = _scale(reduction, total(sample_weight) * inner)
        spread = sample_weight.reshape(sample_weight.shape + (1,) * (x.ndim - sample_weight.ndim))
        w = np.broadcast_to(spread, x.shape).astype(np.float64)
        with np.errstate(all="ignore"):
            terms, scaled = (np.where(w == 0, 0.0, part * w) for part in (terms, scaled))
            gradient = np.where(w == 0, 0.0, derivative * (w * scale))
    with np.errstate(over="ignore"):
        return total(scaled, x.dtype) * scale / down, gradient.astype(x.dtype), terms


def mse(
    prediction: Array, target: Array, *, reduction: str = "mean", sample_weight: Array | None = None
) -> tuple[float, Array, Array]:
    """Mean (or sum) of w (prediction - target)^2, its gradient, and the terms."""
    with np.errstate(all="ignore"):
        d = prediction.astype(np.float64) - target.astype(np.float64)
        return _elementwise(d * d, 2 * d, prediction, reduction, sample_weight)


def mae(
    prediction: Array, target: Array, *, reduction: str = "mean", sample_weight: Array | None = None
) -> tuple[float, Array, Array]:
    """Mean (or sum) of w |prediction - target|, its gradient w sgn(prediction - target), and the terms."""
    with np.errstate(all="ignore"):
        d = prediction.astype(np.float64) - target.astype(np.float64)
        return _elementwise(np.abs(d), sgn(d), prediction, reduction, sample_weight)


def huber(
    prediction: Array,
    target: Array,
    *,
    delta: float = 1.0,
    reduction: str = "mean",
    sample_weight: Array | None = None,
) -> tuple[float, Array, Array]:
    """Mean (or sum) of w d^2 / 2 where |d| <= delta, else w delta (|d| - delta / 2); gradient and terms."""
    with np.errstate(all="ignore"):
        d = prediction.astype(np.float64) - target.astype(np.float64)
        a = np.abs(d)
        terms = np.where(a <= delta, 0.5 * d * d, delta * (a - 0.5 * delta))
        derivative = np.where(d < -delta, -delta, np.where(d > delta, delta, d))
        return _elementwise(terms, derivative, prediction, reduction, sample_weight)


def binary_cross_entropy(
    logits: Array, target: Array, *, reduction: str = "mean", sample_weight: Array | None = None
) -> tuple[float, Array, Array]:
    """Mean (or sum) of -y log(sigmoid(x)) - (1 - y) log(sigmoid(-x)), its gradient, and the terms.

    As |x| wrong + log(1 + e), e = exp(-|x|), `wrong` being the share of the target on the side that
    the sign of x denies; the derivative is +-(wrong - e right) / (1 + e). Nothing cancels.
    """
    x, y = logits, target
    one, zero = x.dtype.type(1), x.dtype.type(0)
    with np.errstate(all="ignore"):
        e = exp(-np.abs(x))
        wrong, right = np.where(x >= 0, one - y, y), np.where(x >= 0, y, one - y)
        slope = (wrong - e * right) / (one + e)
        terms = np.where(wrong == 0, zero, np.abs(x) * wrong) + log1p(e)
        derivative = np.where(x >= 0, slope, -slope)
        return _elementwise(terms.astype(np.float64), derivative.astype(np.float64), x, reduction, sample_weight)


def softmax_cross_entropy(
    logits: Array,
    labels: Array,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    reduction: str = "mean",
    sample_weight: Array | None = None,
    divergence: bool = False,
) -> tuple[float, Array, Array]:
    """Mean (or sum) over rows of -sum t log(softmax(x)), its gradient, and the rows' terms.

    With e = exp(x - max), S = sum e, Q = sum t: loss = Q log(S) + sum t (max - x) and gradient
    (e Q - t S) / S. S - 1 is S less 1 where S >= 2, and else the sum without the maximum, whose e is 1,
    so that a confident right answer keeps its digits. Classes at -infinity take no part in the smoothing.
    `divergence` adds sum t log(t) for probabilities t.
    """
    shape, dtype = logits.shape, logits.dtype
    T, n = dtype.type, logits.shape[-1]
    x = logits.reshape(-1, n)
    rows = np.arange(len(x))
    weight = np.ones(len(x)) if sample_weight is None else sample_weight.ravel().astype(np.float64)
    is_label = labels.dtype.kind in "iu"
    y = labels.ravel().astype(np.int64) if is_label else np.zeros(len(x), np.int64)
    if ignore_index is not None:
        weight = np.where(y == ignore_index, 0, weight)
        y = np.where(y == ignore_index, 0, y)
    weight_sum = _one_by_one(weight)
    scale = _scale(reduction, weight_sum) * weight
    keep, zero = 1 - label_smoothing, T(0)

    with np.errstate(all="ignore"):
        top = _tops(x)
        masked = x == -np.inf
        distance = _distances(top, x)
        e = exp(x - top[:, None])
        if label_smoothing:
            e = np.where(masked, zero, e)
        rest = sums_less_one(e, 1 if n < FEW_CLASSES else ROW_LANES)
        whole = rest + 1
        uniform = np.zeros(len(x))
        to_all = np.zeros(len(x))
        if label_smoothing:
            uniform = label_smoothing / np.count_nonzero(~masked, axis=1)
            to_all = _sums(np.where(masked, 0.0, distance))
        mass = np.ones(len(x))
        if is_label:
            to_label = distance[rows, y]
            even = (uniform * scale).astype(dtype)[:, None]
            gradient = e * (scale / whole).astype(dtype)[:, None] - np.where(masked, zero, even)
            smoothed = label_smoothing - np.where(masked[rows, y], 0, uniform)
            missing = (rest + (1 - e[rows, y].astype(np.float64))) / whole
            gradient[rows, y] = ((smoothed - missing) * scale).astype(dtype)
        else:
            q = labels.reshape(-1, n)
            mass = keep * _sums(q) + label_smoothing
            q_double = q.astype(np.float64)
            distance = (log(q_double) * DOWN if divergence else 0.0) + distance
            to_label = _sums(np.where(q == 0, 0.0, q_double * distance))
            t = T(keep) * q + np.where(masked, zero, uniform.astype(dtype)[:, None])
            mass_t, rest_t, whole_t = (a.astype(dtype)[:, None] for a in (mass, rest, whole))
            numerator = np.where(e == 1, (mass_t - t) - t * rest_t, e * mass_t - t * whole_t)
            gradient = numerator * (scale / whole).astype(dtype)[:, None]
        losses = mass * log1p(rest) + (keep * to_label + uniform * to_all) * UP
    gradient[weight == 0] = 0
    loss, terms = _of_rows(losses, weight, weight_sum, logits, reduction)
    return loss, gradient.reshape(shape), terms


def kl_divergence(
    logits: Array, target: Array, *, reduction: str = "mean", sample_weight: Array | None = None
) -> tuple[float, Array, Array]:
    """Mean (or sum) over rows of sum t (log(t) - log(softmax(x))), its gradient, and the rows' terms."""
    return softmax_cross_entropy(logits, target, reduction=reduction, sample_weight=sample_weight, divergence=True)


def distillation(
    logits: Array,
    teacher_logits: Array,
    labels: Array,
    *,
    alpha: float = 0.5,
    temperature: float = 2.0,
    reduction: str = "mean",
    sample_weight: Array | None = None,
) -> tuple[float, Array, Array]:
    """Mean (or sum) over rows of alpha T^2 KL(teacher || student) + (1 - alpha) cross-entropy, and so on.

    With u and d what the teacher's and the student's logits lie above their maximum (so at most 0),
    KL = sum q (u - d) / T - log(sum e^(u / T)) + log(sum e^(d / T)), q = softmax(u / T); T^2 KL has
    the gradient T (softmax(d / T) - q).
    """
    shape, dtype = logits.shape, logits.dtype
    T, n = dtype.type, logits.shape[-1]
    x, t = logits.reshape(-1, n), teacher_logits.reshape(-1, n)
    rows, y = np.arange(len(x)), labels.ravel().astype(np.int64)
    weight = np.ones(len(x)) if sample_weight is None else sample_weight.ravel().astype(np.float64)
    weight_sum = _one_by_one(weight)
    scale = weight * _scale(reduction, weight_sum)
    hard, soft, cooling = 1 - alpha, alpha * temperature, T(1 / temperature)
    with np.errstate(all="ignore"):
        top, teacher_top = _tops(x), _tops(t)
        d = x - top[:, None]
        e, e_soft, e_teacher = exp(d), exp(d * cooling), exp((t - teacher_top[:, None]) * cooling)
        rest, rest_soft, rest_teacher = (sums_less_one(part) for part in (e, e_soft, e_teacher))
        distance = _distances(top, x)
        q = e_teacher.astype(np.float64)
        apart = _sums(np.where(q == 0, q, q * (distance - _distances(teacher_top, t))))
        cross_entropy = log1p(rest) + distance[rows, y] * UP
        divergence = apart / (rest_teacher + 1) * UP / temperature + (log1p(rest_soft) - log1p(rest_teacher))
        none = np.zeros(len(x))  # what has no share may be infinite
        losses = (temperature * (soft * divergence) if soft else none) + (hard * cross_entropy if hard else none)
        factors = hard * scale / (rest + 1), soft * scale / (rest_soft + 1), soft * scale / (rest_teacher + 1)
        by_hard, by_soft, by_teacher = (factor.astype(dtype)[:, None] for factor in factors)
        gradient = e * by_hard + (e_soft * by_soft - e_teacher * by_teacher)
        missing = rest + (1 - e[rows, y].astype(np.float64))
        of_label = e_soft[rows, y].astype(np.float64) * factors[1] - q[rows, y] * factors[2] - missing * factors[0]
        gradient[rows, y] = of_label.astype(dtype)
    gradient[weight == 0] = 0
    loss, terms = _of_rows(losses, weight, weight_sum, logits, reduction)
    return loss, gradient.reshape(shape), terms
