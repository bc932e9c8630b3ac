"""Learning rate schedules: functions that return a callable `step -> float`.

`schedule(t)` is the rate of step t, counted from 0: `schedule(0)` is that of the first step. Any
callable of that form is a schedule; the ones made here also pickle, compare equal when their
arguments do, and print as the call that makes them. Rates are Python floats, computed in double.

Each function names the PyTorch scheduler (`torch.optim.lr_scheduler`) or the Keras schedule
(`keras.optimizers.schedules`) that it equals: PyTorch's to 1e-12, Keras' to 1e-6, since Keras
computes in float32. Where a schedule has an end, the last rate holds from there on.

A rate must be finite and not negative, a number of steps an integer and at least 1. Every function
raises `TypeError` for an argument of another type and `ValueError` for one out of its range. A rate
that grows beyond all floats is infinite, which optimizers refuse.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, Literal

__all__ = [
    "constant",
    "cosine",
    "cosine_restarts",
    "exponential",
    "inverse_time",
    "join",
    "linear",
    "multi_step",
    "one_cycle",
    "piecewise_constant",
    "polynomial",
    "step",
]

Schedule = Callable[[int], float]


class _Schedule(partial[float]):
    """A formula below with all its arguments but the last, the step."""

    def __repr__(self) -> str:
        names = self.func.__code__.co_varnames
        arguments = (f"{n}={a!r}" for n, a in zip(names, self.args, strict=False))
        return f"{self.func.__name__.removeprefix('_')}({', '.join(arguments)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Schedule):
            return NotImplemented
        return (self.func, self.args) == (other.func, other.args)

    def __hash__(self) -> int:
        return hash((self.func, self.args))


def constant(lr: float) -> Schedule:
    """The same rate at every step: `lr`.

    Equals PyTorch's `ConstantLR(factor=1)`.

    >>> constant(0.1)(1000)
    0.1
    """
    return _Schedule(_constant, _rate("lr", lr))


def _constant(lr: float, t: int) -> float:
    return lr


def exponential(lr: float, gamma: float, *, steps: int = 1, staircase: bool = False) -> Schedule:
    """Multiplies the rate by `gamma` every `steps` steps, smoothly or in stairs.

        lr gamma^(t / steps)             t / steps rounded down if `staircase`

    Equals PyTorch's `ExponentialLR` with `steps=1`, and Keras' `ExponentialDecay`. `gamma` must be
    positive; above 1 the rate grows, which a learning rate range test needs.

    >>> exponential(1.0, 0.5, steps=10)(20)
    0.25
    """
    return _Schedule(
        _exponential,
        _rate("lr", lr),
        _positive("gamma", gamma),
        _count("steps", steps),
        _flag("staircase", staircase),
    )


def _exponential(lr: float, gamma: float, steps: int, staircase: bool, t: int) -> float:
    return _times_power(lr, gamma, t // steps if staircase else t / steps)


def step(lr: float, step_size: int, gamma: float = 0.1) -> Schedule:
    """Multiplies the rate by `gamma` after every `step_size` steps.

        lr gamma^floor(t / step_size)

    Equals PyTorch's `StepLR`. `gamma` must be positive.

    >>> halved = step(1.0, 10, gamma=0.5)
    >>> halved(9), halved(10), halved(20)
    (1.0, 0.5, 0.25)
    """
    return _Schedule(_step, _rate("lr", lr), _count("step_size", step_size), _positive("gamma", gamma))


def _step(lr: float, step_size: int, gamma: float, t: int) -> float:
    return _times_power(lr, gamma, t // step_size)


def multi_step(lr: float, milestones: Iterable[int], gamma: float = 0.1) -> Schedule:
    """Multiplies the rate by `gamma` at each of the `milestones`.

        lr gamma^n                       n = how many milestones are <= t

    Equals PyTorch's `MultiStepLR`. `milestones` are strictly increasing integers, at least 0;
    `gamma` must be positive.

    >>> schedule = multi_step(1.0, [10, 15], gamma=0.5)
    >>> schedule(9), schedule(10), schedule(15)
    (1.0, 0.5, 0.25)
    """
    return _Schedule(
        _multi_step,
        _rate("lr", lr),
        _increasing("milestones", milestones),
        _positive("gamma", gamma),
    )


def _multi_step(lr: float, milestones: tuple[int, ...], gamma: float, t: int) -> float:
    return _times_power(lr, gamma, bisect_right(milestones, t))


def piecewise_constant(boundaries: Iterable[int], values: Iterable[float]) -> Schedule:
    """One rate up to and including each boundary, and another after the last.

        values[n]                        n = how many boundaries are < t

    Equals Keras' `PiecewiseConstantDecay`; note that a boundary still has the old rate, where
    `multi_step` and `join` change at it. `boundaries` are strictly increasing integers, at least
    0; `values` are rates, one more than there are boundaries.

    >>> schedule = piecewise_constant([10, 15], [1.0, 0.5, 0.2])
    >>> schedule(10), schedule(11), schedule(16)
    (1.0, 0.5, 0.2)
    """
    steps = _increasing("boundaries", boundaries)
    rates = tuple(_rate(f"values[{i}]", v) for i, v in enumerate(_tuple("values", values)))
    if len(rates) != len(steps) + 1:
        raise ValueError(f"values: expected one more than boundaries, {len(steps) + 1}, got {len(rates)}")
    return _Schedule(_piecewise_constant, steps, rates)


def _piecewise_constant(boundaries: tuple[int, ...], values: tuple[float, ...], t: int) -> float:
    return values[bisect_left(boundaries, t)]


def linear(start: float, end: float, steps: int) -> Schedule:
    """From `start` to `end` along a line.

        start + (end - start) min(t, steps) / steps

    Equals PyTorch's `LinearLR(start_factor=start / lr, end_factor=end / lr, total_iters=steps)`.

    >>> linear(0.0, 1.0, 10)(5)
    0.5
    """
    return _Schedule(_linear, _rate("start", start), _rate("end", end), _count("steps", steps))


def _linear(start: float, end: float, steps: int, t: int) -> float:
    return _between(start, end, min(t / steps, 1.0))


def polynomial(lr: float, steps: int, power: float = 1.0, *, end: float = 0.0) -> Schedule:
    """From `lr` to `end` along a power of the steps that are left.

        end + (lr - end) (1 - min(t, steps) / steps)^power

    Equals PyTorch's `PolynomialLR` with `end=0`, and Keras' `PolynomialDecay` (whose default is
    `end=1e-4`) without its cycles. `power` must be positive.

    >>> polynomial(1.0, 10, power=2.0)(5)
    0.25
    """
    return _Schedule(
        _polynomial,
        _rate("lr", lr),
        _count("steps", steps),
        _positive("power", power),
        _rate("end", end),
    )


def _polynomial(lr: float, steps: int, power: float, end: float, t: int) -> float:
    return _between(end, lr, (1.0 - min(t / steps, 1.0)) ** power)


def inverse_time(lr: float, rate: float, *, steps: int = 1, staircase: bool = False) -> Schedule:
    """Falls as one over the time.

        lr / (1 + rate t / steps)        t / steps rounded down if `staircase`

    Equals Keras' `InverseTimeDecay`. `rate` must be finite and not negative.

    >>> inverse_time(1.0, 0.5)(2)
    0.5
    """
    return _Schedule(
        _inverse_time,
        _rate("lr", lr),
        _rate("rate", rate),
        _count("steps", steps),
        _flag("staircase", staircase),
    )


def _inverse_time(lr: float, rate: float, steps: int, staircase: bool, t: int) -> float:
    return lr / (1.0 + rate * (t // steps if staircase else t / steps))


def cosine(lr: float, steps: int, warmup: int = 0, *, start: float = 0.0, end: float = 0.0) -> Schedule:
    """From `lr` to `end` along half a cosine, after a linear warm-up from `start`.

        start + (lr - start) t / warmup                    for t < warmup
        end + (lr - end) (1 + cos(pi u)) / 2               u = (t - warmup) / (steps - warmup)
        end                                                for t >= steps

    `steps` counts the warm-up and must exceed it. Equals Keras' `CosineDecay(start,
    decay_steps=steps - warmup, alpha=end / lr, warmup_target=lr, warmup_steps=warmup)`, and up to
    t = steps PyTorch's `CosineAnnealingLR(T_max=steps, eta_min=end)`, which then rises again; with
    a warm-up, PyTorch's `SequentialLR` of a `LinearLR` and that. With the default `start=0` the
    very first step has rate 0. From Loshchilov and Hutter, SGDR, 2017, and for the warm-up Goyal
    et al., Accurate, Large Minibatch SGD, 2017.

    >>> schedule = cosine(1e-2, steps=10_000, warmup=500)
    >>> schedule(0), schedule(250), schedule(500), schedule(10_000)
    (0.0, 0.005, 0.01, 0.0)
    """
    steps, warmup = _count("steps", steps), _count("warmup", warmup, least=0)
    if warmup >= steps:
        raise ValueError(f"warmup: expected fewer than steps={steps}, got {warmup}")
    return _Schedule(_cosine, _rate("lr", lr), steps, warmup, _rate("start", start), _rate("end", end))


def _cosine(lr: float, steps: int, warmup: int, start: float, end: float, t: int) -> float:
    if t < warmup:
        return _between(start, lr, t / warmup)
    return _between(lr, end, _half_cosine(min((t - warmup) / (steps - warmup), 1.0)))


def cosine_restarts(lr: float, period: int, growth: int = 1, *, end: float = 0.0) -> Schedule:
    """Half a cosine from `lr` towards `end`, again and again, each `growth` times as long.

        end + (lr - end) (1 + cos(pi t_i / T_i)) / 2       T_0 = period, T_i = growth T_(i-1)

    where t_i counts the steps since the last restart, at which the rate is `lr` again. Equals
    PyTorch's `CosineAnnealingWarmRestarts(T_0=period, T_mult=growth, eta_min=end)`. `growth` is an
    integer, at least 1. For a warm-up, `join` a `linear` before it. From Loshchilov and Hutter,
    SGDR, 2017.

    >>> schedule = cosine_restarts(1.0, 10, growth=2)
    >>> schedule(0), round(schedule(5), 9), schedule(10), round(schedule(20), 9), schedule(30)
    (1.0, 0.5, 1.0, 0.5, 1.0)
    """
    return _Schedule(
        _cosine_restarts,
        _rate("lr", lr),
        _count("period", period),
        _count("growth", growth),
        _rate("end", end),
    )


def _cosine_restarts(lr: float, period: int, growth: int, end: float, t: int) -> float:
    if growth == 1:
        t %= period
    while t >= period:
        t, period = t - period, period * growth
    return _between(lr, end, _half_cosine(t / period))


def one_cycle(
    max_lr: float,
    steps: int,
    *,
    pct_start: float = 0.3,
    anneal: Literal["cos", "linear"] = "cos",
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    three_phase: bool = False,
) -> Schedule:
    """Up to `max_lr` and down again, to far below where it began.

        lr_0 = max_lr / div_factor                          at t = 0
        max_lr                                              at t = pct_start steps - 1
        (lr_0                                               at t = 2 pct_start steps - 2)
        lr_0 / final_div_factor                             from t = steps - 1 on

    with half a cosine between them, or a line if `anneal="linear"`; the third point is there if
    `three_phase`. `pct_start` is a fraction of the steps from 0 to 1 (to 0.5 if `three_phase`);
    both factors must be positive and the rates finite. Equals PyTorch's `OneCycleLR(max_lr, total_steps=steps,
    anneal_strategy=anneal, ...)` of the same defaults; it leaves the momentum alone. From Smith
    and Topin, Super-Convergence, 2018.

    >>> schedule = one_cycle(1.0, 101, pct_start=0.5, div_factor=10, anneal="linear")
    >>> schedule(0), round(schedule(49), 3), schedule(100)
    (0.1, 0.991, 1e-05)
    """
    if anneal not in ("cos", "linear"):
        raise ValueError(f"anneal: expected 'cos' or 'linear', got {anneal!r}")
    three_phase = _flag("three_phase", three_phase)
    most, fraction = 0.5 if three_phase else 1.0, _rate("pct_start", pct_start)
    if fraction > most:
        raise ValueError(f"pct_start: expected a number from 0 to {most}, got {pct_start!r}")
    peak, count = _rate("max_lr", max_lr), _count("steps", steps)
    div, final_div = _positive("div_factor", div_factor), _positive("final_div_factor", final_div_factor)
    if not peak / div < math.inf:
        raise ValueError(f"div_factor: expected a finite max_lr / div_factor, got {peak!r} / {div!r}")
    if not peak / div / final_div < math.inf:
        raise ValueError(
            f"final_div_factor: expected a finite lr_0 / final_div_factor, got {peak / div!r} / {final_div!r}"
        )
    return _Schedule(_one_cycle, peak, count, fraction, anneal, div, final_div, three_phase)


def _one_cycle(
    max_lr: float,
    steps: int,
    pct_start: float,
    anneal: str,
    div_factor: float,
    final_div_factor: float,
    three_phase: bool,
    t: int,
) -> float:
    first = max_lr / div_factor
    last = first / final_div_factor
    points = [(0.0, first), (pct_start * steps - 1.0, max_lr), (steps - 1.0, last)]
    if three_phase:
        points.insert(2, (2.0 * pct_start * steps - 2.0, first))
    for (left, start), (right, end) in pairwise(points):
        if left < right and t <= right:
            u = (t - left) / (right - left)
            return _between(start, end, u if anneal == "linear" else _half_cosine(u))
    return last


def join(schedules: Iterable[Schedule], milestones: Iterable[int]) -> Schedule:
    """One schedule after another; each begins at its own step 0 where its milestone is.

        schedules[n](t - milestones[n - 1])                 n = how many milestones are <= t

    Equals PyTorch's `SequentialLR`. `milestones` are strictly increasing integers, at least 0, one
    fewer than there are schedules. It pickles if its schedules do.

    >>> schedule = join([linear(0.0, 1.0, 10), exponential(1.0, 0.5)], [10])
    >>> schedule(5), schedule(10), schedule(12)
    (0.5, 1.0, 0.25)
    """
    parts, steps = _tuple("schedules", schedules), _increasing("milestones", milestones)
    for i, part in enumerate(parts):
        if not callable(part):
            raise TypeError(f"schedules[{i}]: expected a callable step -> float, got {part!r}")
    if not parts:
        raise ValueError("schedules: expected at least one, got none")
    if len(parts) != len(steps) + 1:
        raise ValueError(f"milestones: expected one fewer than schedules, {len(parts) - 1}, got {len(steps)}")
    return _Schedule(_join, parts, steps)


def _join(schedules: tuple[Schedule, ...], milestones: tuple[int, ...], t: int) -> float:
    n = bisect_right(milestones, t)
    return schedules[n](t - milestones[n - 1] if n else t)


def _times_power(lr: float, gamma: float, n: float) -> float:
    try:
        return lr * math.pow(gamma, n)
    except OverflowError:
        return math.inf if lr else 0.0


def _between(start: float, end: float, w: float) -> float:
    return (1.0 - w) * start + w * end  # exact at both ends, unlike start + w (end - start)


def _half_cosine(u: float) -> float:
    return (1.0 - math.cos(math.pi * u)) / 2.0


def _rate(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a real number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond every float
        number = math.inf
    if not 0.0 <= number < math.inf:
        raise ValueError(f"{name}: expected a finite number >= 0, got {value!r}")
    return number


def _positive(name: str, value: float) -> float:
    number = _rate(name, value)
    if number == 0.0:
        raise ValueError(f"{name}: expected a finite number > 0, got {value!r}")
    return number


def _count(name: str, value: int, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected an integer >= {least}, got {value!r}")
    return int(value)


def _flag(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return value


def _tuple(name: str, values: Iterable[Any]) -> tuple[Any, ...]:
    try:
        return tuple(values)
    except TypeError:
        raise TypeError(f"{name}: expected a sequence, got {values!r}") from None


def _increasing(name: str, values: Iterable[int]) -> tuple[int, ...]:
    counts = tuple(_count(f"{name}[{i}]", v, 0) for i, v in enumerate(_tuple(name, values)))
    if any(a >= b for a, b in pairwise(counts)):
        raise ValueError(f"{name}: expected strictly increasing steps, got {list(counts)}")
    return counts
