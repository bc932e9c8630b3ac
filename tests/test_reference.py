"""The formulas that kernels are compared with are right: against higher precision, and what they promise."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from steepest import reference
from steepest._cases import DTYPES
from steepest._cases.data import any_bits, special_values
from steepest._cases.functions import function_points
from steepest.reference.arithmetic import multiply_add

Array = NDArray[Any]
parametrize_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)

mpmath.mp.prec = 320

FUNCTIONS: dict[str, tuple[Callable[[Any], Any], float]] = {  # what it is, and its bound in ULP
    "exp": (mpmath.exp, 1.2),
    "log": (mpmath.log, 1),
    "log1p": (mpmath.log1p, 2),
    "sigmoid": (lambda x: 1 / (1 + mpmath.exp(-x)), 3),
    "tanh": (mpmath.tanh, 4),
}


def domain(name: str, dtype: Any, n: int) -> Array:
    """Points of every kind where the function has a finite value."""
    x = function_points("exp" if name in ("sigmoid", "tanh") else name, dtype, n)
    x = x[np.isfinite(x)]
    if name == "log":
        return x[x > 0]
    if name == "log1p":
        return np.abs(x)
    return np.concatenate([x, special_values(dtype)[:-2]]) if name == "tanh" else x


def error_in_ulps(name: str, x: Array, y: Array) -> float:
    """The largest error of y, in units in the last place of the exact values."""
    info = np.finfo(x.dtype)
    exact = FUNCTIONS[name][0]
    largest, worst = mpmath.mpf(float(info.max)), 0.0
    for a, b in zip(x.tolist(), y.tolist(), strict=True):
        e = exact(mpmath.mpf(a))
        _, exponent = mpmath.frexp(e) if e else (0, info.minexp)
        ulp = mpmath.ldexp(1, max(exponent - 1, info.minexp) - info.nmant)
        if math.isinf(b):
            assert b > 0 and e >= largest + ulp / 2, (a, b)
            continue
        error = float(abs(b - e) / ulp)
        assert error <= FUNCTIONS[name][1], (name, a, b, error)
        worst = max(worst, error)
    return worst


@parametrize_dtypes
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_within_their_bound(name: str, dtype: Any) -> None:
    """Over the whole range, subnormal results included, and around every place that is special."""
    x = np.unique(domain(name, dtype, 1500))
    assert x.size > 4000
    assert error_in_ulps(name, x, getattr(reference, name)(x)) > 0.4


@pytest.mark.parametrize("name", ["exp", "log", "log1p"])
def test_functions_of_many_floats(name: str) -> None:
    """NumPy's functions in double are exact to nine digits more than float32 has."""
    x = domain(name, DTYPES[0], 400_000)
    with np.errstate(all="ignore"):
        exact = getattr(np, name)(x.astype(float))
        y = getattr(reference, name)(x).astype(float)
    fits = np.abs(exact) < np.finfo(np.float32).max
    assert np.isinf(y[~fits]).all()
    ulp = np.ldexp(1.0, np.maximum(np.frexp(exact[fits])[1] - 1, -126) - 23)
    assert np.max(np.abs(y[fits] - exact[fits]) / ulp) <= FUNCTIONS[name][1]


@parametrize_dtypes
def test_functions_of_special_values(dtype: Any) -> None:
    def at(name: str, *points: float) -> list[str]:
        return [repr(y) for y in getattr(reference, name)(np.array(points, dtype)).tolist()]

    inf, nan = math.inf, math.nan
    assert at("exp", 0, -0.0, -inf, inf, nan) == ["1.0", "1.0", "0.0", "inf", "nan"]
    assert at("log", 1, 0, -0.0, inf, -1, -inf, nan) == ["0.0", "-inf", "-inf", "inf", "nan", "nan", "nan"]
    assert at("log1p", 0, inf, nan) == ["0.0", "inf", "nan"]
    assert at("tanh", 0, -0.0, inf, -inf, nan) == ["0.0", "-0.0", "1.0", "-1.0", "nan"]
    assert at("sigmoid", 0, -inf, inf, nan) == ["0.5", "0.0", "1.0", "nan"]


@parametrize_dtypes
def test_exp_is_monotonic_where_its_parts_meet(dtype: Any) -> None:
    """At k + 1/2 times log(2), where the next power of two takes over."""
    k = np.arange(-100, 88)
    x = ((k + 0.5) * math.log(2)).astype(dtype)
    points = [x]
    for _ in range(5):
        points = [
            np.nextafter(points[0], dtype.type(-math.inf)),
            *points,
            np.nextafter(points[-1], dtype.type(math.inf)),
        ]
    y = reference.exp(np.array(points))
    assert np.all(np.diff(y, axis=0) >= -np.spacing(y[:-1]))


@parametrize_dtypes
def test_flush_larger_and_sgn(dtype: Any) -> None:
    def same(actual: Array, *expected: float) -> bool:
        return actual.dtype == dtype and repr(actual.tolist()) == repr([float(dtype.type(x)) for x in expected])

    tiny, inf, nan = float(np.finfo(dtype).tiny), math.inf, math.nan
    below = float(np.nextafter(dtype.type(tiny), dtype.type(0)))
    x = np.array([tiny, -tiny, below, -below, -0.0, inf, -inf, nan], dtype)
    assert same(reference.flush(x), tiny, -tiny, 0, 0, 0, inf, -inf, nan)
    assert same(reference.sgn(x), 1, -1, 1, -1, 0, nan, nan, nan) or same(reference.sgn(x), 1, -1, 1, -1, 0, 1, -1, nan)
    a, b = np.array([1, 2, nan, 1, 0], dtype), np.array([2, 1, 1, nan, -0.0], dtype)
    assert same(reference.larger(a, b), 2, 2, nan, 1, -0.0)


@given(st.floats(0, 1), st.integers(0, 10**7))
def test_power(base: float, n: int) -> None:
    """Squaring doubles the error: in relative terms it grows as n does, and no faster."""
    exact = mpmath.mpf(base) ** n
    if exact > 1e-300:
        assert abs(reference.power(base, n) - exact) <= max(n, 1) * 2**-53 * exact


def test_clip_factor() -> None:
    assert reference.clip_factor(10.0, None) == 1.0
    assert reference.clip_factor(10.0, 20.0) == 1.0
    assert reference.clip_factor(10.0, 1.0) == 1 / (10 + 1e-6)
    assert reference.clip_factor(0.0, 1.0) == 1.0
    assert reference.clip_factor(math.inf, 1.0) == 0.0
    assert math.isnan(reference.clip_factor(math.nan, 1.0))


def test_what_is_fused_has_an_order() -> None:
    """Scale, clip, L1, L2; and 'off' changes nothing, not even the sign of a zero."""
    p, g = np.array([2.0, -2.0, 0.0]), np.array([10.0, -1.0, 0.5])
    x = reference.fused(p, g, scale=0.5, max_value=2.0, l1=0.25, l2=0.125)
    assert x.tolist() == [2 + 0.25 + 0.25, -0.5 - 0.25 - 0.25, 0.25]
    assert reference.fused(p, g, scale=0.5, maximize=True).tolist() == [-5, 0.5, -0.25]
    special = special_values(DTYPES[0])
    assert reference.fused(np.ones_like(special), special).tobytes() == special.tobytes()


@pytest.mark.parametrize("rule", reference.RULES)
def test_rules_change_no_argument_and_keep_the_dtype(rule: str) -> None:
    p, g = np.linspace(-1, 1, 9, dtype=np.float32), np.linspace(1, -2, 9, dtype=np.float32)
    state: dict[str, Any] = {}
    for t in (1, 2):
        given = {name: np.copy(x) for name, x in state.items()}
        new_p, new_state = reference.RULES[rule](p.copy(), g, state, t)
        assert new_p.dtype == np.float32 and not np.array_equal(new_p, p)
        assert all(np.array_equal(state[name], x) for name, x in given.items())
        p, state = new_p, new_state
    assert g.tobytes() == np.linspace(1, -2, 9, dtype=np.float32).tobytes()


# ---------------------------------------------------------------------------------------------
# Multiply and add, rounded once


def rounded_once(a: float, b: float, c: float, dtype: Any) -> float:
    """a b + c by IEEE 754, from its exact value."""
    if not all(map(math.isfinite, (a, b, c))):
        return c if math.isfinite(a) and math.isfinite(b) else a * b + c
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:  # -0 where both terms are
        return a * b + c if 0 in (a, b) else 0.0
    info = np.finfo(dtype)
    exponent = abs(exact.numerator).bit_length() - exact.denominator.bit_length()
    exponent -= abs(exact) < Fraction(2) ** exponent
    unit = Fraction(2) ** (max(exponent, int(info.minexp)) - info.nmant)
    size = round(abs(exact) / unit) * unit  # half to even
    return math.copysign(float(size) if size <= Fraction(float(info.max)) else math.inf, 1 if exact > 0 else -1)


def hard_sums(rng: np.random.Generator, n: int) -> dict[str, tuple[Array, Array, Array]]:
    """Factors and terms, whose sum is hard to round."""

    def exponents(low: int, high: int) -> Array:
        return np.asarray(rng.choice([-1.0, 1.0], n) * 2.0 ** rng.integers(low, high, n))

    def few_bits() -> Array:
        return rng.integers(1, 1 << rng.integers(1, 30, n)).astype(float)

    a, b, c = rng.standard_normal((3, n))
    special = np.append(special_values(DTYPES[1]), [3, 1 + 2**-52, 1 - 2**-53, 2.0**-537, 1.5 * 2.0**-538, 2.0**512])
    near = -np.nextafter(a * b, exponents(0, 1) * math.inf)
    return {
        "ordinary": (a, b, c),
        "cancelled": (a, b, -(a * b)),
        "nearly cancelled": (a, b, near),
        "far apart": (a, b, a * b * exponents(-115, 115)),
        "ties": (few_bits(), few_bits() * exponents(-60, 60), few_bits() * exponents(-60, 60)),
        "ties of powers": (exponents(-60, 60), 1 + np.abs(exponents(-52, 0)), exponents(-120, 120)),
        "any bits": (any_bits(rng, n, float), any_bits(rng, n, float), any_bits(rng, n, float)),
        "subnormal": (a * exponents(-545, -500), b * exponents(-545, -500), c * exponents(-1078, -1000)),
        "huge": (a * exponents(495, 515), b * exponents(495, 515), c * exponents(980, 1020)),
        "special": (rng.choice(special, n), rng.choice(special, n), rng.choice(special, n)),
    }


@parametrize_dtypes
def test_multiply_add_is_rounded_once(dtype: Any) -> None:
    for name, numbers in hard_sums(np.random.default_rng(5), 2000).items():
        with np.errstate(all="ignore"):
            a, b, c = (x.astype(dtype) for x in numbers)
        actual = multiply_add(a, b, c)
        assert actual.dtype == dtype
        for terms, value in zip(zip(a.tolist(), b.tolist(), c.tolist(), strict=True), actual.tolist(), strict=True):
            assert repr(value) == repr(rounded_once(*terms, dtype)), (name, terms)


# ---------------------------------------------------------------------------------------------
# Sums


@parametrize_dtypes
@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 2047, 2048, 2049, 300_000])
def test_the_error_of_a_sum_does_not_grow(n: int, dtype: Any) -> None:
    """Within 4 units in the last place of the sum of the magnitudes, where the terms cancel too."""
    rng = np.random.default_rng(n)
    for x in (rng.random(n), rng.standard_normal(n), np.exp(rng.uniform(-30, 30, n)) * rng.choice([-1, 1], n)):
        terms = x.astype(dtype)
        exact = math.fsum(terms.tolist())
        unit = math.ulp(math.fsum(np.abs(terms).tolist()))
        assert abs(reference.total(terms) - exact) <= 4 * unit


def test_a_sum_of_infinities() -> None:
    ones = np.ones(5000)
    for values, expected in (((math.inf,), math.inf), ((-math.inf,), -math.inf), ((math.inf, -math.inf), math.nan)):
        x = ones.copy()
        x[7 : 7 + len(values)] = values
        assert repr(reference.total(x)) == repr(expected)


@pytest.mark.parametrize("scale", [5e-324, 1e-310, 1e-200, 1e-160, 1.0, 1e160, 1e200, 1e300])
def test_the_norm_neither_overflows_nor_underflows(scale: float) -> None:
    x = np.array([3.0, 4.0, 12.0]) * scale
    exact = math.hypot(*x)
    assert abs(reference.global_norm([x[:1], x[1:]]) - exact) <= math.ulp(exact)
    assert reference.global_norm([np.array([scale])]) == scale
    assert reference.global_norm([]) == 0


# ---------------------------------------------------------------------------------------------
# Losses


def relative_error(value: float, exact: Any) -> float:
    return float(abs(value - exact) / abs(exact)) if exact else float(abs(value))


@parametrize_dtypes
def test_binary_cross_entropy_keeps_its_digits(dtype: Any) -> None:
    eps = float(np.finfo(dtype).eps)
    rng = np.random.default_rng(0)
    logits = np.concatenate([rng.uniform(-5, 5, 100), rng.uniform(-80, 80, 100), rng.uniform(-1e-6, 1e-6, 20)])
    for x in logits.astype(dtype):
        for y in dtype.type([0, 1, 0.25]):
            loss, gradient, _ = reference.binary_cross_entropy(np.array([x]), np.array([y]))
            z, t = mpmath.mpf(float(x)), mpmath.mpf(float(y))
            exact = t * mpmath.log1p(mpmath.exp(-z)) + (1 - t) * mpmath.log1p(mpmath.exp(z))
            assert relative_error(loss, exact) <= 4 * eps
            slope = 1 / (1 + mpmath.exp(-z)) - t
            cancels = abs(float(slope)) < 0.01 and y == 0.25
            assert cancels or relative_error(float(gradient[0]), slope) <= 100 * eps


@parametrize_dtypes
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_cross_entropy_keeps_its_digits(smoothing: float, dtype: Any) -> None:
    eps = float(np.finfo(dtype).eps)
    rng = np.random.default_rng(1)
    for width in (0.1, 3.0, 30.0):
        x = (width * rng.standard_normal((30, 6))).astype(dtype)
        labels = rng.integers(0, 6, 30)
        labels[:10] = x[:10].argmax(1)
        q = rng.dirichlet(np.ones(6), 30).astype(dtype)
        by_label = reference.softmax_cross_entropy(x, labels, label_smoothing=smoothing, reduction="sum")
        by_target = reference.softmax_cross_entropy(x, q, label_smoothing=smoothing, reduction="sum")
        for i in range(30):
            z = [mpmath.mpf(float(v)) for v in x[i]]
            top = max(z)
            log_sum = top + mpmath.log(mpmath.fsum(mpmath.exp(v - top) for v in z))
            one_hot = [1.0 if j == labels[i] else 0.0 for j in range(6)]
            for target, (_, gradient, terms) in ((one_hot, by_label), (q[i].tolist(), by_target)):
                t = [(1 - mpmath.mpf(smoothing)) * mpmath.mpf(v) + mpmath.mpf(smoothing) / 6 for v in target]
                mass = mpmath.fsum(t)
                exact = mpmath.fsum(tj * (log_sum - zj) for tj, zj in zip(t, z, strict=True))
                bound = eps * (8 + float(top - min(z)))  # x - max is rounded
                assert relative_error(terms[i], exact) <= bound
                for j in range(6):
                    slope = mass * mpmath.exp(z[j] - log_sum) - t[j]
                    assert abs(float(gradient[i, j]) - slope) <= bound * max(abs(slope), 0.1)


def test_a_confident_right_answer_keeps_its_digits() -> None:
    for dtype in DTYPES:
        loss, gradient, _ = reference.softmax_cross_entropy(np.array([[20, 0]], dtype), np.array([0]))
        exact = mpmath.log1p(mpmath.exp(-20))
        assert relative_error(loss, exact) < 4e-7
        assert relative_error(float(gradient[0, 0]), mpmath.exp(-exact) - 1) < 4e-7


def test_masked_classes_have_no_part() -> None:
    x = np.array([[1.0, -math.inf, 2.0]])
    for smoothing in (0.0, 0.1):
        loss, gradient, _ = reference.softmax_cross_entropy(x, np.array([0]), label_smoothing=smoothing)
        without = reference.softmax_cross_entropy(x[:, [0, 2]], np.array([0]), label_smoothing=smoothing)
        assert loss == pytest.approx(without[0], rel=1e-15)
        assert repr(gradient[0, 1]) == "np.float64(0.0)"
        np.testing.assert_allclose(gradient[:, [0, 2]], without[1], rtol=1e-15)
    assert reference.softmax_cross_entropy(x, np.array([1]))[0] == math.inf


@given(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9), st.floats(1e-3, 1e3))
def test_mse_mae_and_huber(prediction: float, target: float, delta: float) -> None:
    x, y = np.array([prediction]), np.array([target])
    d = Fraction(prediction) - Fraction(target)
    for name, exact in (("mse", d * d), ("mae", abs(d))):
        assert getattr(reference, name)(x, y)[0] == pytest.approx(float(exact), rel=1e-15, abs=1e-300)
    bound = Fraction(delta)
    exact = d * d / 2 if abs(d) <= bound else bound * (abs(d) - bound / 2)
    loss, gradient, _ = reference.huber(x, y, delta=delta)
    assert loss == pytest.approx(float(exact), rel=1e-14, abs=1e-300)
    assert gradient[0] == max(-delta, min(delta, float(d)))


def test_kl_divergence_is_cross_entropy_less_entropy() -> None:
    rng = np.random.default_rng(2)
    x, q = rng.standard_normal((20, 5)), rng.dirichlet(np.ones(5), 20)
    q[0] = [1, 0, 0, 0, 0]
    loss, gradient, _ = reference.kl_divergence(x, q, reduction="sum")
    cross, same, _ = reference.softmax_cross_entropy(x, q, reduction="sum")
    entropy = -math.fsum(v * math.log(v) for v in q.ravel() if v)
    assert loss == pytest.approx(cross - entropy, rel=1e-13)
    assert gradient.tobytes() == same.tobytes()


@pytest.mark.parametrize("name", ["mse", "mae", "huber", "binary_cross_entropy"])
def test_weights_of_zero_leave_out(name: str) -> None:
    x, y, w = np.array([0.5, math.nan, 2.0]), np.array([1.0, 0.0, math.inf]), np.array([2.0, 0.0, 0.0])
    loss, gradient, terms = getattr(reference, name)(x, y, sample_weight=w)
    assert loss == getattr(reference, name)(x[:1], y[:1])[0]
    assert gradient[1:].tobytes() == terms[1:].tobytes() == np.zeros(2).tobytes()
    loss, gradient, _ = getattr(reference, name)(x, y, sample_weight=0 * w)
    assert loss == 0 and not gradient.any()
