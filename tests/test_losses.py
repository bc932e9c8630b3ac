"""The losses as their users call them: against formulas in many digits, and with everything that can go wrong.

That they have the reference's bits on every ISA is in test_kernels.py, other kinds of arrays in test_arrays.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mpmath import mpf
from numpy.typing import NDArray

from steepest import losses

Array = NDArray[Any]
both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
INF, NAN = math.inf, math.nan
TINY = 1e-290  # what may be lost to a subnormal result


def bound_of(dtype: Any) -> float:
    return 64 * float(np.finfo(dtype).eps)


# ---------------------------------------------------------------------------------------------
# Formulas in many digits: of one element, or one row, the loss and its derivatives


def mse_exact(x: mpf, y: mpf) -> tuple[mpf, mpf]:
    return (x - y) ** 2, 2 * (x - y)


def mae_exact(x: mpf, y: mpf) -> tuple[mpf, mpf]:
    return abs(x - y), mpmath.sign(x - y)


def huber_exact(x: mpf, y: mpf) -> tuple[mpf, mpf]:
    d = x - y
    return (d * d / 2, d) if abs(d) <= 1 else (abs(d) - mpf(1) / 2, mpmath.sign(d))


def bce_exact(x: mpf, y: mpf) -> tuple[mpf, mpf]:
    positive, negative = mpmath.log1p(mpmath.exp(x)), mpmath.log1p(mpmath.exp(-x))
    return y * negative + (1 - y) * positive, 1 / (1 + mpmath.exp(-x)) - y


def softmax_exact(x: list[mpf], t: list[mpf]) -> tuple[mpf, list[mpf]]:
    with mpmath.workdps(60):
        top = max(x)
        whole = mpmath.fsum(mpmath.exp(z - top) for z in x)
        log_whole = top + mpmath.log(whole)
        loss = mpmath.fsum(q * (log_whole - z) for q, z in zip(t, x, strict=True) if q != 0)
        mass = mpmath.fsum(t)
        return loss, [mass * mpmath.exp(z - top) / whole - q for z, q in zip(x, t, strict=True)]


ELEMENTWISE: dict[str, tuple[Callable[..., tuple[float, Array]], Callable[[mpf, mpf], tuple[mpf, mpf]]]] = {
    "mse": (losses.mse, mse_exact),
    "mae": (losses.mae, mae_exact),
    "huber": (losses.huber, huber_exact),
    "binary_cross_entropy": (losses.binary_cross_entropy, bce_exact),
}
every_elementwise = pytest.mark.parametrize("name", ELEMENTWISE)


def lost(dtype: Any) -> float:
    """What a gradient may lose where it, or a factor of it, is subnormal."""
    return max(4 * float(np.finfo(dtype).smallest_subnormal), TINY)


def close(got: float, exact: mpf, relative: float, absolute: float = 0.0) -> bool:
    return bool(abs(mpf(got) - exact) <= relative * abs(exact) + absolute)


@every_elementwise
@both_dtypes
@settings(max_examples=50)
@given(data=st.data())
def test_elementwise_losses_against_many_digits(name: str, dtype: Any, data: st.DataObject) -> None:
    call, formula = ELEMENTWISE[name]
    shape = data.draw(hnp.array_shapes(max_dims=3, max_side=4))
    numbers = st.floats(-90, 90, width=32)
    x = data.draw(hnp.arrays(dtype, shape, elements=numbers))
    targets = st.floats(0, 1, width=32) if name == "binary_cross_entropy" else numbers
    y = data.draw(hnp.arrays(dtype, shape, elements=targets))
    axes = data.draw(st.integers(0, len(shape)))
    weights = hnp.arrays(dtype, shape[:axes], elements=st.sampled_from([0.0, 0.5, 1.0, 3.0]))
    w = data.draw(st.none() | weights)
    reduction = data.draw(st.sampled_from(["mean", "sum"]))
    with np.errstate(all="raise"):
        loss, gradient = call(x, y, sample_weight=w, reduction=reduction)

    spread = np.ones(shape) if w is None else np.broadcast_to(w.reshape(w.shape + (1,) * (x.ndim - w.ndim)), shape)
    total = float(spread.sum())
    scale = mpf(1) if reduction == "sum" else 1 / mpf(total) if total else mpf(0)
    exact, size = mpf(0), mpf(0)
    for p, q, v, g in zip(x.flat, y.flat, spread.flat, gradient.flat, strict=True):
        value, slope = formula(mpf(float(p)), mpf(float(q)))
        exact += value * float(v) * scale
        size += abs(slope) * float(v) * scale
        cancels = min(float(v * q), 1.0) if name == "binary_cross_entropy" else 0.0  # sigmoid(x) - y, rounded first
        assert close(
            float(g), slope * float(v) * scale, bound_of(dtype), float(bound_of(dtype) * cancels * scale) + lost(dtype)
        )
    assert type(loss) is float and close(loss, exact, bound_of(dtype), TINY)
    assert gradient.dtype == dtype and gradient.shape == x.shape and gradient.flags.c_contiguous


@both_dtypes
@settings(max_examples=50)
@given(data=st.data())
def test_softmax_cross_entropy_against_many_digits(dtype: Any, data: st.DataObject) -> None:
    rows, classes = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    width = data.draw(st.sampled_from([1.0, 30.0, 300.0]))
    masked = st.just(-INF) if data.draw(st.booleans()) and classes > 1 else st.nothing()
    x = data.draw(hnp.arrays(dtype, (rows, classes), elements=st.floats(-width, width, width=32) | masked))
    x[:, 0] = np.where(np.isneginf(x).all(axis=1), 0, x[:, 0])
    smoothing = data.draw(st.sampled_from([0.0, 0.1, 0.75]))
    by_label = data.draw(st.booleans())
    if by_label:
        labels = data.draw(hnp.arrays(np.int64, rows, elements=st.integers(0, classes - 1)))
        t = np.eye(classes, dtype=dtype)[labels]
    else:
        labels = t = data.draw(hnp.arrays(dtype, (rows, classes), elements=st.sampled_from([0.0, 0.125, 0.25, 0.5])))
        t[np.isneginf(x)] = 0
    w = data.draw(st.none() | hnp.arrays(dtype, rows, elements=st.sampled_from([0.0, 0.5, 2.0])))
    loss, gradient = losses.softmax_cross_entropy(x, labels, label_smoothing=smoothing, sample_weight=w)

    weights = np.ones(rows) if w is None else w
    scale = 1 / mpf(float(weights.sum())) if weights.sum() else mpf(0)
    exact = mpf(0)
    for x_row, t_row, v, g_row in zip(x, t, weights, gradient, strict=True):
        there = np.flatnonzero(~np.isneginf(x_row))
        if any(t_row[j] and j not in there for j in range(classes)):  # the target itself is masked
            if v:
                assert loss == INF
                return
            continue
        smoothed = [(1 - mpf(smoothing)) * float(t_row[j]) + mpf(smoothing) / len(there) for j in there]
        value, slopes = softmax_exact([mpf(float(x_row[j])) for j in there], smoothed)
        exact += value * float(v) * scale
        spread = float(x_row[there].max() - x_row[there].min())
        bound = bound_of(dtype) * (1 + spread / 16)  # x - max is rounded
        for j, slope in zip(there, slopes, strict=True):
            assert close(
                float(g_row[j]), slope * float(v) * scale, bound, float(bound * float(v) * scale * 0.5) + lost(dtype)
            )
        assert (g_row[np.isneginf(x_row)] == 0).all()
    assert close(loss, exact, bound_of(dtype) * (1 + float(np.ptp(x[np.isfinite(x)])) / 16), TINY)


@both_dtypes
@settings(max_examples=50)
@given(data=st.data())
def test_kl_divergence_against_many_digits(dtype: Any, data: st.DataObject) -> None:
    x = data.draw(hnp.arrays(dtype, (2, 4), elements=st.floats(-20, 20, width=32)))
    q = data.draw(hnp.arrays(dtype, (2, 4), elements=st.sampled_from([0.0, 0.0625, 0.25, 0.5])))
    loss, gradient = losses.kl_divergence(x, q, reduction="sum")
    exact = size = mpf(0)
    for x_row, q_row in zip(x, q, strict=True):
        t = [mpf(float(v)) for v in q_row]
        cross, _ = softmax_exact([mpf(float(v)) for v in x_row], t)
        entropy = mpmath.fsum(v * mpmath.log(v) for v in t if v)
        exact, size = exact + cross + entropy, size + abs(cross) + abs(entropy)
    assert abs(loss - exact) <= 10 * bound_of(dtype) * size
    assert gradient.tobytes() == losses.softmax_cross_entropy(x, q, reduction="sum")[1].tobytes()


# ---------------------------------------------------------------------------------------------
# Finite differences


rng = np.random.default_rng(0)
LABELS = np.array([0, 3, 2, 3, 1])
WEIGHTS = np.array([1.0, 0.5, 0.0, 2.0, 1.0])
PROBABILITIES = rng.dirichlet(np.ones(4), 5)
CALLS: dict[str, Callable[..., tuple[float, Array]]] = {
    "mse": lambda x, **o: losses.mse(x, PROBABILITIES, **o),
    "mse of rows": lambda x, **o: losses.mse(x, PROBABILITIES, sample_weight=WEIGHTS, **o),
    "mae": lambda x, **o: losses.mae(x, PROBABILITIES, **o),
    "huber": lambda x, **o: losses.huber(x, PROBABILITIES, delta=0.7, **o),
    "bce": lambda x, **o: losses.binary_cross_entropy(x, PROBABILITIES, **o),
    "bce of rows": lambda x, **o: losses.binary_cross_entropy(x, PROBABILITIES, sample_weight=WEIGHTS, **o),
    "labels": lambda x, **o: losses.softmax_cross_entropy(x, LABELS, **o),
    "labels, weights": lambda x, **o: losses.softmax_cross_entropy(x, LABELS, sample_weight=WEIGHTS, **o),
    "labels, smoothed": lambda x, **o: losses.softmax_cross_entropy(x, LABELS, label_smoothing=0.2, **o),
    "labels, ignored": lambda x, **o: losses.softmax_cross_entropy(x, LABELS, ignore_index=3, **o),
    "probabilities": lambda x, **o: losses.softmax_cross_entropy(x, PROBABILITIES, **o),
    "probabilities, smoothed": lambda x, **o: losses.softmax_cross_entropy(x, PROBABILITIES, label_smoothing=0.2, **o),
    "no distribution": lambda x, **o: losses.softmax_cross_entropy(x, 3 * PROBABILITIES, **o),
    "divergence": lambda x, **o: losses.kl_divergence(x, PROBABILITIES, **o),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@every_call
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_gradient_is_the_derivative_of_the_loss(call: Any, reduction: str) -> None:
    x = 2 * rng.standard_normal((5, 4))
    _, gradient = call(x, reduction=reduction)
    numeric = np.empty_like(x)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += 1e-5
        down[i] -= 1e-5
        numeric[i] = (call(up, reduction=reduction)[0] - call(down, reduction=reduction)[0]) / 2e-5
    np.testing.assert_allclose(gradient, numeric, atol=1e-9, rtol=1e-8)


@every_call
def test_out_is_filled_and_returned_and_may_be_the_predictions(call: Any) -> None:
    x = rng.standard_normal((5, 4))
    loss, gradient = call(x)
    out = np.full((5, 4), NAN)
    assert call(x, out=out)[1] is out
    in_place = x.copy()
    loss_2, same = call(in_place, out=in_place)
    assert same is in_place and loss_2 == loss
    assert gradient.tobytes() == out.tobytes() == in_place.tobytes()


def test_one_row_and_many_axes() -> None:
    x = rng.standard_normal((2, 3, 4))
    labels = np.array([[0, 1, 2], [3, 0, 1]])
    w = rng.random((2, 3))
    flat_loss, flat = losses.softmax_cross_entropy(x.reshape(6, 4), labels.ravel(), sample_weight=w.ravel())
    loss, gradient = losses.softmax_cross_entropy(x, labels, sample_weight=w)
    assert loss == flat_loss and gradient.tobytes() == flat.tobytes()
    one, g = losses.softmax_cross_entropy(x[0, 0].copy(), np.array(0))
    two, g_2 = losses.softmax_cross_entropy(x[0, :1].copy(), np.array([0]))
    assert one == two and g.shape == (4,) and g.tobytes() == g_2.tobytes()


# ---------------------------------------------------------------------------------------------
# Confident answers, masks, the largest numbers


@both_dtypes
def test_a_confident_right_answer_keeps_its_digits(dtype: Any) -> None:
    relative = 8 * float(np.finfo(dtype).eps)
    exact, miss = float(mpmath.log1p(mpmath.exp(-20))), float(1 / (1 + mpmath.exp(20)))
    x = np.array([[20.0, 0.0]], dtype)
    for loss, gradient in (
        losses.softmax_cross_entropy(x, np.array([0])),
        losses.softmax_cross_entropy(x, np.array([[1.0, 0.0]], dtype)),
    ):
        assert loss == pytest.approx(exact, rel=relative) and 2.06e-9 < loss < 2.07e-9
        np.testing.assert_allclose(gradient, [[-miss, miss]], rtol=relative)
    for value, target in ((20.0, 1.0), (-20.0, 0.0)):
        loss, gradient = losses.binary_cross_entropy(np.array([value], dtype), np.array([target], dtype))
        assert loss == pytest.approx(exact, rel=relative)
        np.testing.assert_allclose(gradient, [math.copysign(miss, -value)], rtol=relative)


@both_dtypes
def test_masked_classes_are_exactly_zero(dtype: Any) -> None:
    x = np.array([[1.0, -INF, 2.0, -INF], [-INF, 3.0, -INF, -INF]], dtype)
    labels = np.array([2, 1])
    there = np.isfinite(x)
    for smoothing in (0.0, 0.3):
        loss, gradient = losses.softmax_cross_entropy(x, labels, label_smoothing=smoothing)
        alone, part = losses.softmax_cross_entropy(x[:1, [0, 2]].copy(), np.array([1]), label_smoothing=smoothing)
        assert loss == pytest.approx(alone / 2, rel=4e-7)  # the second row has one class only: no loss
        assert gradient[~there].tobytes() == np.zeros(5, dtype).tobytes()
        np.testing.assert_allclose(gradient[0, [0, 2]], part[0] / 2, rtol=4e-7)
    loss, gradient = losses.softmax_cross_entropy(x, np.array([1, 1]))
    assert loss == INF and gradient[0, 1] == -0.5 and np.isfinite(gradient).all()


@pytest.mark.parametrize(("dtype", "big"), [(np.float32, 1e38), (np.float64, 8e307)])
def test_no_overflow_for_large_numbers(dtype: Any, big: float) -> None:
    x = np.array([[big, -big, 0.0], [-big, 0.0, big], [0.0, big, -big]], dtype)
    exact_big = float(dtype(big))
    for labels, each in (([0, 2, 1], 0.0), ([2, 1, 0], exact_big), ([1, 0, 2], 2 * exact_big)):
        for smoothing in (0.0, 0.25):
            for i, label in enumerate(labels):
                loss, gradient = losses.softmax_cross_entropy(
                    x[i : i + 1].copy(), np.array([label]), label_smoothing=smoothing
                )
                assert np.isfinite(gradient).all()
                assert loss == pytest.approx((1 - smoothing) * each + smoothing * exact_big, rel=1e-6)
                assert gradient[0].sum() == pytest.approx(0, abs=1e-6)
    for value in (big, -big):
        for target in (0.0, 0.5, 1.0):
            loss, gradient = losses.binary_cross_entropy(np.array([value], dtype), np.array([target], dtype))
            wrong = 1 - target if value > 0 else target
            assert loss == pytest.approx(exact_big * wrong) and gradient[0] == math.copysign(wrong, value)
    loss, gradient = losses.mae(np.array([big], dtype), np.array([-big], dtype))
    assert loss == pytest.approx(2 * exact_big) and gradient[0] == 1
    if dtype is np.float32:
        loss, gradient = losses.mse(np.array([big], dtype), np.array([0.0], dtype))
        assert loss == exact_big**2 and gradient[0] == np.float32(2 * exact_big)


def test_a_mean_is_finite_where_the_sum_is_not() -> None:
    big, rows = 1.5e308, 40
    x, zero = np.full(rows, big), np.zeros(rows)
    logits = np.stack([x, zero], axis=1)
    for loss in (
        losses.mae(x, zero)[0],
        losses.huber(x, zero)[0],
        losses.binary_cross_entropy(x, zero)[0],
        losses.softmax_cross_entropy(logits, np.ones(rows, int))[0],
        losses.distillation(logits, logits[:, ::-1].copy(), np.ones(rows, int), alpha=0.0)[0],
    ):
        assert loss == pytest.approx(big, rel=1e-15)
    assert losses.mse(np.full(3000, 1e154), np.zeros(3000))[0] == pytest.approx(1e308, rel=1e-15)
    assert losses.mae(x, zero, reduction="sum")[0] == INF
    wide = np.array([[1.7e308, -1.7e308, 0.0]])
    loss, gradient = losses.softmax_cross_entropy(wide, np.array([0]), label_smoothing=0.3)
    assert loss == pytest.approx(0.51e308, rel=1e-14) and np.isfinite(gradient).all()


@both_dtypes
def test_what_is_not_a_number_stays_one(dtype: Any) -> None:
    for name, (call, _) in ELEMENTWISE.items():
        loss, gradient = call(np.array([NAN, 0.5], dtype), np.array([0.25, 0.25], dtype))
        assert math.isnan(loss) and math.isnan(gradient[0]) and math.isfinite(gradient[1]), name
    for row in ([NAN, 1.0], [INF, INF], [-INF, -INF]):
        loss, gradient = losses.softmax_cross_entropy(np.array([row, [0, 0]], dtype), np.array([0, 0]))
        assert math.isnan(loss) and np.isnan(gradient[0]).any() and np.isfinite(gradient[1]).all()


# ---------------------------------------------------------------------------------------------
# Reductions, weights, nothing left


@every_call
def test_the_mean_is_the_sum_divided(call: Any) -> None:
    x = rng.standard_normal((5, 4))
    mean, g_mean = call(x)
    total, g_total = call(x, reduction="sum")
    ratio = total / mean
    np.testing.assert_allclose(g_total, g_mean * ratio, rtol=1e-14)
    assert ratio == pytest.approx(round(2 * ratio) / 2)  # a number of terms, or a sum of the weights


@both_dtypes
def test_an_empty_batch_has_no_loss(dtype: Any) -> None:
    for shape in [(0,), (0, 3), (3, 0), (2, 0, 5)]:
        for call, _ in ELEMENTWISE.values():
            for reduction in ("mean", "sum"):
                loss, gradient = call(np.empty(shape, dtype), np.empty(shape, dtype), reduction=reduction)
                assert loss == 0.0 and gradient.shape == shape
    x = np.empty((0, 3), dtype)
    for labels in (np.empty(0, np.int64), np.empty((0, 3), dtype)):
        loss, gradient = losses.softmax_cross_entropy(x, labels)
        assert loss == 0.0 and gradient.shape == (0, 3)
    with pytest.raises(ValueError, match=r"logits: expected shape \(\.\.\., classes\), got \(3, 0\)"):
        losses.softmax_cross_entropy(np.empty((3, 0), dtype), np.zeros(3, int))
    with pytest.raises(ValueError, match=r"logits: expected shape \(\.\.\., classes\), got \(\)"):
        losses.softmax_cross_entropy(np.array(1, dtype), np.array(0))


@both_dtypes
def test_where_nothing_is_left_the_loss_is_zero(dtype: Any) -> None:
    x, labels = np.array([[NAN, INF], [1, 2]], dtype), np.array([-100, -100])
    none = np.zeros(2, dtype)
    for loss, gradient in (
        losses.softmax_cross_entropy(x, labels, ignore_index=-100),
        losses.softmax_cross_entropy(x, np.array([0, 1]), sample_weight=none),
        losses.mse(x, x.copy(), sample_weight=none),
        losses.mae(x, x.copy(), sample_weight=np.zeros_like(x)),
        losses.huber(x, x.copy(), sample_weight=none),
        losses.binary_cross_entropy(x, x.copy(), sample_weight=none),
    ):
        assert loss == 0.0 and gradient.tobytes() == np.zeros_like(x).tobytes()


@both_dtypes
def test_ignored_rows_count_nothing(dtype: Any) -> None:
    x = rng.standard_normal((6, 3)).astype(dtype)
    x[1] = NAN
    labels = np.array([0, 7, 2, 7, 1, 1])
    kept = labels != 7
    for weights in (None, rng.random(6).astype(dtype)):
        loss, gradient = losses.softmax_cross_entropy(x, labels, ignore_index=7, sample_weight=weights)
        part = None if weights is None else weights[kept]
        alone, g = losses.softmax_cross_entropy(x[kept], labels[kept], sample_weight=part)
        assert loss == pytest.approx(alone, rel=1e-14)
        np.testing.assert_allclose(gradient[kept], g, rtol=1e-6)
        assert gradient[~kept].tobytes() == np.zeros((2, 3), dtype).tobytes()
    loss, gradient = losses.softmax_cross_entropy(x[kept], labels[kept], ignore_index=1)  # a class of its own
    assert (gradient[2:] == 0).all() and (gradient[:2] != 0).all()


@both_dtypes
def test_a_weight_of_two_is_a_sample_twice(dtype: Any) -> None:
    x, y = rng.standard_normal((3, 4)).astype(dtype), rng.random((3, 4)).astype(dtype)
    twice = np.repeat([0, 1, 2], [1, 2, 1])
    calls: list[Any] = [*(call for call, _ in ELEMENTWISE.values()), losses.softmax_cross_entropy, losses.kl_divergence]
    for call in calls:
        weighted, g = call(x, y, sample_weight=np.array([1, 2, 1], dtype))
        plain, g_plain = call(x[twice], y[twice])
        assert weighted == pytest.approx(plain, rel=1e-14)
        np.testing.assert_allclose(g, [g_plain[0], g_plain[1] + g_plain[2], g_plain[3]], rtol=1e-6)


# ---------------------------------------------------------------------------------------------
# Labels

INTEGERS = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]


@pytest.mark.parametrize("integer", INTEGERS)
@both_dtypes
def test_labels_of_every_integer_type(integer: Any, dtype: Any) -> None:
    x = rng.standard_normal((300, 100)).astype(dtype)
    labels = np.arange(300) % 100
    loss, gradient = losses.softmax_cross_entropy(x, labels)
    strided = np.repeat(labels, 2).astype(integer)[::2]
    for form in (
        labels.astype(integer),
        labels.astype(np.dtype(integer).newbyteorder(">")),
        strided,
        labels[::-1].astype(integer)[::-1],
        np.frombuffer(b"\0" + labels.astype(integer).tobytes(), np.uint8)[1:].view(integer),
    ):
        loss_2, gradient_2 = losses.softmax_cross_entropy(x, form)
        assert loss_2 == loss and gradient_2.tobytes() == gradient.tobytes()


@pytest.mark.parametrize("integer", INTEGERS)
def test_labels_out_of_range(integer: Any) -> None:
    info = np.iinfo(integer)
    x = rng.standard_normal((4, 3))
    before = x.copy()
    for bad in {3, 4, 100, int(info.max), int(info.max) - 1, int(info.min), -1, -3} - {0}:
        if not info.min <= bad <= info.max:
            continue
        labels = np.array([0, 1, bad, 2], integer)
        with pytest.raises(ValueError, match=f"^labels: expected 0 to 2 for 3 classes, got {bad} at position 2$"):
            losses.softmax_cross_entropy(x, labels, out=x)
        assert x.tobytes() == before.tobytes()
        if -(2**63) <= bad < 2**63:
            losses.softmax_cross_entropy(x, labels, ignore_index=bad)
            with pytest.raises(ValueError, match="labels: expected 0 to 2"):
                losses.softmax_cross_entropy(x, labels, ignore_index=bad - 1 if bad > info.min else bad + 1)


def test_an_ignored_index_is_compared_as_a_number() -> None:
    x = np.zeros((1, 3))
    for integer, bits in ((np.uint64, 2**64 - 100), (np.uint8, 156), (np.uint32, 2**32 - 100)):
        with pytest.raises(ValueError, match=f"got {bits} at position 0"):
            losses.softmax_cross_entropy(x, np.array([bits], integer), ignore_index=-100)
    with pytest.raises(ValueError, match="got -100"):
        losses.softmax_cross_entropy(x, np.array([-100], np.int8), ignore_index=156)


@pytest.mark.parametrize(
    ("labels", "error", "words"),
    [
        (np.zeros(4), TypeError, "float64"),
        (np.zeros(4, bool), TypeError, "bool"),
        (np.zeros((4, 3), bool), TypeError, "bool"),
        (np.zeros(4, object), TypeError, "object"),
        (np.zeros(4, "m8[s]"), TypeError, "timedelta"),
        (np.zeros(4, complex), TypeError, "complex"),
        (np.zeros(4, "U1"), TypeError, "U1"),
        (np.zeros((4, 3), np.float32), TypeError, "float32"),
        (np.zeros((4, 3), np.float16), TypeError, "float16"),
        (np.ma.masked_array(np.zeros(4, int), [False, True, False, False]), TypeError, "masked"),
        (np.ma.masked_array(np.zeros((4, 3)), False), TypeError, "masked"),
        ([0, 1, 2, 0], TypeError, "list"),
        (0, TypeError, "int"),
        (None, TypeError, "NoneType"),
        ("abcd", TypeError, "str"),
        (np.zeros(3, int), ValueError, "(3,)"),
        (np.zeros((4, 1), int), ValueError, "(4, 1)"),
        (np.zeros((4, 3), int), ValueError, "(4, 3)"),
        (np.zeros((), int), ValueError, "()"),
        (np.zeros((1, 4), int), ValueError, "(1, 4)"),
        (np.zeros((3, 4)), ValueError, "(3, 4)"),
        (np.zeros((3, 4)).T, ValueError, "C-contiguous"),
    ],
)
def test_labels_that_are_none(labels: Any, error: type[Exception], words: str) -> None:
    x = np.ones((4, 3))
    with pytest.raises(error) as caught:
        losses.softmax_cross_entropy(x, labels, out=x)
    assert "labels: expected" in str(caught.value) and words in str(caught.value) and (x == 1).all()


# ---------------------------------------------------------------------------------------------
# Other arguments


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"reduction": "none"}, ValueError, "reduction: expected"),
        ({"reduction": None}, ValueError, "reduction: expected"),
        ({"reduction": b"mean"}, ValueError, "reduction: expected"),
        ({"label_smoothing": 1.0}, ValueError, "label_smoothing: expected"),
        ({"label_smoothing": -0.1}, ValueError, "label_smoothing: expected"),
        ({"label_smoothing": NAN}, ValueError, "label_smoothing: expected"),
        ({"label_smoothing": "0.1"}, TypeError, "label_smoothing: expected"),
        ({"label_smoothing": None}, TypeError, "label_smoothing: expected"),
        ({"ignore_index": 1.0}, TypeError, "ignore_index: expected"),
        ({"ignore_index": "1"}, TypeError, "ignore_index: expected"),
        ({"ignore_index": True}, TypeError, "ignore_index: expected"),
        ({"ignore_index": 2**63}, ValueError, "ignore_index: expected"),
        ({"sample_weight": np.ones((4, 3))}, ValueError, "sample_weight: expected shape (4,), got (4, 3)"),
        ({"sample_weight": np.array(1.0)}, ValueError, "sample_weight: expected shape (4,), got ()"),
        ({"sample_weight": np.array([1, 1, 1, -1.0])}, ValueError, "sample_weight: expected finite weights >= 0"),
        ({"sample_weight": np.array([1, 1, NAN, 1])}, ValueError, "sample_weight: expected finite weights >= 0"),
        ({"sample_weight": np.array([1, INF, 1, 1])}, ValueError, "sample_weight: expected finite weights >= 0"),
        ({"sample_weight": np.ones(4, np.float32)}, TypeError, "sample_weight: expected dtype float64"),
        ({"sample_weight": np.ones(4, int)}, TypeError, "sample_weight: expected dtype float32 or float64"),
        ({"sample_weight": [1.0] * 4}, TypeError, "sample_weight: expected a numpy.ndarray"),
        ({"out": np.ones((4, 3), np.float32)}, TypeError, "out: expected dtype float64"),
        ({"out": np.ones((3, 4))}, ValueError, "out: expected shape (4, 3), got (3, 4)"),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], error: type[Exception], words: str) -> None:
    x = np.ones((4, 3))
    options = {"out": x, **options}
    with pytest.raises(error) as caught:
        losses.softmax_cross_entropy(x, np.array([0, 1, 2, 0]), **options)
    assert words in str(caught.value) and "got" in str(caught.value)
    assert (x == 1).all() and (options["out"] == 1).all()


def test_probabilities_have_no_ignored_index() -> None:
    with pytest.raises(ValueError, match="ignore_index: expected None"):
        losses.softmax_cross_entropy(np.ones((4, 3)), np.ones((4, 3)), ignore_index=0)
    with pytest.raises(TypeError, match="target: expected probabilities, got"):
        losses.kl_divergence(np.ones((4, 3)), np.array([0, 1, 2, 0]))


@pytest.mark.parametrize(
    ("delta", "error"), [(0.0, ValueError), (-1.0, ValueError), (NAN, ValueError), (INF, ValueError)]
    + [(x, TypeError) for x in ("1", None)],
)  # fmt: skip
def test_delta_out_of_range(delta: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="delta: expected"):
        losses.huber(np.ones(2), np.zeros(2), delta=delta)


@every_elementwise
def test_elementwise_losses_of_0d_arrays(name: str) -> None:
    call, formula = ELEMENTWISE[name]
    loss, gradient = call(np.array(0.75), np.array(0.25))
    value, slope = formula(mpf(0.75), mpf(0.25))
    assert loss == pytest.approx(float(value)) and gradient.shape == () and gradient == pytest.approx(float(slope))


def test_large_batches_equal_small_ones() -> None:
    """Large enough for several threads, and for the GIL to be let go."""
    x, labels = rng.standard_normal((4096, 64)), rng.integers(0, 64, 4096)
    for call in (
        partial(losses.softmax_cross_entropy, reduction="sum"),
        partial(losses.softmax_cross_entropy, reduction="sum", label_smoothing=0.1),
    ):
        loss, gradient = call(x, labels)
        parts = [call(x[i : i + 32].copy(), labels[i : i + 32].copy()) for i in range(0, 4096, 32)]
        assert loss == pytest.approx(math.fsum(part for part, _ in parts), rel=1e-15)
        assert gradient.tobytes() == b"".join(part.tobytes() for _, part in parts)


@pytest.mark.parametrize("name", ["mse", "mae", "huber", "binary_cross_entropy"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0, 1])
def test_gradients_stored_past_the_caches(name: str, dtype: Any, offset: int) -> None:
    """Those of 32 MiB and more are, unless they replace the predictions or don't lie on multiples of 16 bytes."""
    n = 2**25 // np.dtype(dtype).itemsize + 2061
    tile = np.random.default_rng(0).normal(size=10_007).astype(dtype)
    x, out = np.resize(tile, n), np.full(n + offset, np.nan, dtype)[offset:]
    y = np.resize(np.abs(np.tanh(tile[::-1])), n)
    value, gradient = getattr(losses, name)(x, y, out=out)
    expected = getattr(losses, name)(x, y, out=x)
    assert value == expected[0]
    assert np.array_equal(gradient, expected[1])
