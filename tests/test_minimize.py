"""Minimising a function that returns its value and gradient."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import steepest as sp

Array = NDArray[Any]


def bowl(x: Array) -> tuple[float, Array]:
    return float((x * x).sum()), 2 * x


def rosenbrock(x: Array) -> tuple[float, Array]:
    a, b = x
    value = (1 - a) ** 2 + 100 * (b - a * a) ** 2
    return value, np.array([-2 * (1 - a) - 400 * a * (b - a * a), 200 * (b - a * a)])


@pytest.mark.parametrize(
    ("optimizer", "lr"),
    [
        (sp.SGD, 0.1),
        (sp.Momentum, 0.1),
        (sp.RMSprop, 0.01),
        (sp.Adagrad, 1.0),
        (sp.Adam, 0.1),
        (sp.AdamW, 0.1),
        (sp.NAdam, 0.1),
        (sp.Lion, 0.001),
    ],
)
def test_every_rule_finds_the_bottom_of_a_bowl(optimizer: Any, lr: float) -> None:
    x0 = np.array([1.0, -0.5])
    result = sp.minimize(bowl, x0, optimizer, lr=lr, steps=2000, tol=1e-9)
    assert result.value < 1e-4 and result.value == bowl(result.x)[0]
    assert x0.tolist() == [1.0, -0.5]


def test_rosenbrock() -> None:
    result = sp.minimize(rosenbrock, [-1.2, 1.0], steps=20_000, tol=1e-8, lr=0.02)
    assert result.converged and result.steps < 20_000
    np.testing.assert_allclose(result.x, [1.0, 1.0], atol=1e-6)


def test_what_is_returned() -> None:
    result = sp.minimize(bowl, [1.0], sp.SGD, lr=0.25, steps=3)
    assert result.history == [1.0, 0.25, 0.0625, 0.015625] and result.value == 0.015625
    assert result.x.tolist() == [0.125] and result.steps == 3 and result.converged is False
    with pytest.raises(AttributeError):
        result.steps = 4  # type: ignore[misc]


def test_it_stops_where_the_gradient_is_small_enough() -> None:
    result = sp.minimize(bowl, [1.0], sp.SGD, lr=0.25, tol=0.5)
    assert result.history == [1.0, 0.25, 0.0625] and result.converged is True  # a norm of 2, 1, 0.5
    at_once = sp.minimize(bowl, np.zeros(3))
    assert at_once.converged and at_once.steps == 0 and at_once.history == [0.0]


def test_no_steps_is_an_evaluation() -> None:
    result = sp.minimize(bowl, [2.0], steps=0)
    assert (result.value, result.steps, result.history, result.converged) == (4.0, 0, [4.0], False)


@pytest.mark.parametrize("stop", [True, np.True_])
def test_a_callback_sees_every_point_and_may_stop(stop: Any) -> None:
    seen: list[tuple[int, float, float]] = []

    def callback(step: int, x: Array, value: float) -> Any:
        seen.append((step, float(x[0]), value))
        return stop if step == 2 else None

    result = sp.minimize(bowl, [1.0], sp.SGD, lr=0.25, steps=10, callback=callback)
    assert seen == [(0, 1.0, 1.0), (1, 0.5, 0.25), (2, 0.25, 0.0625)]
    assert result.steps == 2 and result.value == 0.0625 and not result.converged


@pytest.mark.parametrize("answer", [None, False, np.False_, 1, "go on", [1]])
def test_only_true_stops(answer: Any) -> None:
    assert sp.minimize(bowl, [1.0], steps=3, callback=lambda *_: answer).steps == 3


@pytest.mark.parametrize(
    ("x0", "dtype", "shape"),
    [
        (3, np.float64, ()),
        (3.0, np.float64, ()),
        (np.float32(3), np.float32, ()),
        (np.array(3.0), np.float64, ()),
        ([1, 2], np.float64, (2,)),
        ([], np.float64, (0,)),
        (((1, 2), (3, 4)), np.float64, (2, 2)),
        (np.ones(3, np.float16), np.float64, (3,)),
        (np.ones(3, np.int8), np.float64, (3,)),
        (np.ones(3, np.float32), np.float32, (3,)),
        (np.ones((2, 3), np.float32, "F"), np.float32, (2, 3)),
        (np.ones(3, ">f8"), np.float64, (3,)),
        (np.ones(6)[::2], np.float64, (3,)),
        (np.broadcast_to(np.ones(1), 3), np.float64, (3,)),
    ],
)
def test_starting_points(x0: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    result = sp.minimize(bowl, x0, sp.SGD, lr=0.25, steps=2)
    assert result.x.dtype == dtype and result.x.shape == shape and type(result.x) is np.ndarray
    np.testing.assert_array_equal(result.x, np.asarray(x0) / 4)


def test_the_optimizer_is_any_callable() -> None:
    schedule = sp.schedules.exponential(0.5, 0.5)

    def clipped(x: Array, **options: Any) -> sp.Optimizer:
        return sp.SGD(x, max_norm=1.0, **options)

    result = sp.minimize(bowl, [3.0, 4.0], clipped, lr=schedule, steps=2)
    assert math.hypot(*result.x) == pytest.approx(5 - 0.5 - 0.25)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"steps": -1}, ValueError, "steps: expected"),
        ({"steps": 1.5}, TypeError, "steps: expected"),
        ({"steps": "3"}, TypeError, "steps: expected"),
        ({"steps": True}, TypeError, "steps: expected"),
        ({"steps": None}, TypeError, "steps: expected"),
        ({"tol": -1e-9}, ValueError, "tol: expected"),
        ({"tol": math.nan}, ValueError, "tol: expected"),
        ({"tol": "small"}, TypeError, "tol: expected"),
        ({"tol": None}, TypeError, "tol: expected"),
        ({"x0": [1j]}, TypeError, "x0: expected"),
        ({"x0": ["1"]}, TypeError, "x0: expected"),
        ({"x0": None}, TypeError, "x0: expected"),
        ({"x0": np.ma.masked_less([1.0, 2.0], 1.5)}, TypeError, "x0: expected a plain array, got a masked array"),
        ({"x0": [object()]}, TypeError, "x0: expected"),
        ({"lr": -1.0}, ValueError, "lr: expected"),
        ({"beta": 0.5}, TypeError, "beta"),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], error: type[Exception], words: str) -> None:
    called: list[int] = []

    def fun(x: Array) -> tuple[float, Array]:
        called.append(1)
        return bowl(x)

    with pytest.raises(error, match=words):
        sp.minimize(fun, **{"x0": [1.0], **options})
    assert not called


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        ((math.nan, np.ones(2)), FloatingPointError, "fun: expected a finite value, got nan at step 0"),
        ((math.inf, np.ones(2)), FloatingPointError, "fun: expected a finite value, got inf at step 0"),
        ((1.0, np.ones(3)), ValueError, "shape"),
        ((1.0, np.ones(2, np.float32)), TypeError, "float64"),
        ((1.0, np.ones(2, int)), TypeError, "int64"),
        ((1.0, [1.0, 1.0]), TypeError, "^gradient: expected .* got list"),
        ((1.0, np.ones(4)[::2]), ValueError, "^gradient: expected a contiguous array"),
        ((np.ones(1), np.ones(2)), TypeError, r"fun: expected a number as its value, got an array of shape \(1,\)"),
        ((1.0, None), TypeError, "NoneType"),
        (("1.0", np.ones(2)), TypeError, "fun: expected"),
        ((None, np.ones(2)), TypeError, "fun: expected"),
        ((1.0 + 1j, np.ones(2)), TypeError, "fun: expected"),
        (1.0, TypeError, "fun: expected"),
        (None, TypeError, "fun: expected"),
        ((1.0, np.ones(2), 3), TypeError, "fun: expected"),
    ],
)
def test_functions_that_answer_something_else(answer: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        sp.minimize(lambda x: answer, [1.0, 2.0])


def test_a_gradient_that_is_the_point_itself() -> None:
    with pytest.raises(ValueError, match="overlaps params; pass a copy"):
        sp.minimize(lambda x: (float(x @ x) / 2, x), [1.0])


def test_divergence_and_failures_are_raised() -> None:
    with pytest.raises(FloatingPointError, match=r"got (inf|nan) at step"), np.errstate(all="ignore"):
        sp.minimize(bowl, [1.0], sp.SGD, lr=1e30, steps=100)
    with pytest.raises(FloatingPointError, match="params"):
        sp.minimize(lambda x: (1.0, np.array([math.nan])), [1.0], nonfinite="raise")

    def fail(x: Array) -> tuple[float, Array]:
        raise KeyError("data")

    with pytest.raises(KeyError, match="data"):
        sp.minimize(fail, [1.0])
