"""Schedules against values worked out by hand, PyTorch's schedulers and Keras' schedules."""

from __future__ import annotations

import copy
import math
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steepest import schedules

Scheduler = Callable[[Any, Any], Any]
LAST = 120
SQRT2, SQRT3 = math.sqrt(2.0), math.sqrt(3.0)


@dataclass
class Case:
    """A call, its values by hand, and its peers; `torch` counts from rate `lr` to step `until`."""

    call: str
    values: dict[int, float]
    torch: Scheduler | None = None
    keras: Callable[[Any], Any] | None = None
    lr: float = 1.0
    until: int = LAST

    @property
    def schedule(self) -> schedules.Schedule:
        schedule: schedules.Schedule = eval(self.call, vars(schedules))
        return schedule


CASES = [
    Case(
        "constant(0.3)",
        {0: 0.3, 7: 0.3, 10**9: 0.3},
        torch=lambda s, o: s.ConstantLR(o, factor=1.0),
        lr=0.3,
    ),
    Case(
        "exponential(1.0, 0.5)",
        {0: 1.0, 1: 0.5, 3: 0.125, 10: 2.0**-10},
        torch=lambda s, o: s.ExponentialLR(o, gamma=0.5),
        keras=lambda s: s.ExponentialDecay(1.0, 1, 0.5),
    ),
    Case(
        "exponential(0.2, 0.81, steps=10)",
        {0: 0.2, 5: 0.18, 10: 0.162, 20: 0.13122},
        keras=lambda s: s.ExponentialDecay(0.2, 10, 0.81),
    ),
    Case(
        "exponential(0.2, 0.81, steps=10, staircase=True)",
        {0: 0.2, 9: 0.2, 10: 0.162, 19: 0.162, 20: 0.13122},
        keras=lambda s: s.ExponentialDecay(0.2, 10, 0.81, staircase=True),
    ),
    Case("exponential(1e-6, 10.0, steps=20)", {0: 1e-6, 10: math.sqrt(10.0) * 1e-6, 120: 1.0}),
    Case(
        "step(0.4, 30)",
        {0: 0.4, 29: 0.4, 30: 0.04, 59: 0.04, 60: 0.004},
        torch=lambda s, o: s.StepLR(o, step_size=30),
        lr=0.4,
    ),
    Case(
        "multi_step(1.0, [5, 6, 60], gamma=0.5)",
        {0: 1.0, 4: 1.0, 5: 0.5, 6: 0.25, 59: 0.25, 60: 0.125, 999: 0.125},
        torch=lambda s, o: s.MultiStepLR(o, milestones=[5, 6, 60], gamma=0.5),
    ),
    Case("multi_step(1.0, [])", {0: 1.0, 99: 1.0}),
    Case("multi_step(1.0, [0, 2])", {0: 0.1, 1: 0.1, 2: 0.01}),
    Case(
        "piecewise_constant([0, 7, 50], [4.0, 3.0, 2.0, 1.0])",
        {0: 4.0, 1: 3.0, 7: 3.0, 8: 2.0, 50: 2.0, 51: 1.0, 999: 1.0},
        keras=lambda s: s.PiecewiseConstantDecay([0, 7, 50], [4.0, 3.0, 2.0, 1.0]),
    ),
    Case(
        "linear(0.1, 0.4, 30)",
        {0: 0.1, 10: 0.2, 20: 0.3, 30: 0.4, 31: 0.4},
        torch=lambda s, o: s.LinearLR(o, start_factor=0.25, end_factor=1.0, total_iters=30),
        lr=0.4,
    ),
    Case(
        "linear(1.0, 0.0, 4)",
        {0: 1.0, 1: 0.75, 3: 0.25, 4: 0.0, 5: 0.0},
        torch=lambda s, o: s.LinearLR(o, start_factor=1.0, end_factor=0.0, total_iters=4),
    ),
    Case(
        "polynomial(0.6, 100)",
        {0: 0.6, 25: 0.45, 50: 0.3, 100: 0.0, 101: 0.0},
        torch=lambda s, o: s.PolynomialLR(o, total_iters=100),
        keras=lambda s: s.PolynomialDecay(0.6, 100, 0.0),
        lr=0.6,
    ),
    Case(
        "polynomial(1.0, 100, 2.5)",
        {0: 1.0, 75: 0.03125, 96: 0.00032, 100: 0.0, 101: 0.0},
        torch=lambda s, o: s.PolynomialLR(o, total_iters=100, power=2.5),
    ),
    Case(
        "polynomial(0.5, 80, 2.0, end=0.1)",
        {0: 0.5, 40: 0.2, 60: 0.125, 80: 0.1, 81: 0.1},
        keras=lambda s: s.PolynomialDecay(0.5, 80, 0.1, power=2.0),
    ),
    Case(
        "inverse_time(0.6, 0.5)",
        {0: 0.6, 1: 0.4, 2: 0.3, 4: 0.2, 10: 0.1},
        keras=lambda s: s.InverseTimeDecay(0.6, 1, 0.5),
    ),
    Case(
        "inverse_time(0.6, 1.0, steps=10)",
        {0: 0.6, 5: 0.4, 10: 0.3, 50: 0.1},
        keras=lambda s: s.InverseTimeDecay(0.6, 10, 1.0),
    ),
    Case(
        "inverse_time(0.6, 1.0, steps=10, staircase=True)",
        {0: 0.6, 9: 0.6, 10: 0.3, 19: 0.3, 20: 0.2},
        keras=lambda s: s.InverseTimeDecay(0.6, 10, 1.0, staircase=True),
    ),
    Case(
        "cosine(1.0, 100)",
        {0: 1.0, 25: (2 + SQRT2) / 4, 50: 0.5, 75: (2 - SQRT2) / 4, 100: 0.0, 150: 0.0},
        torch=lambda s, o: s.CosineAnnealingLR(o, T_max=100),
        keras=lambda s: s.CosineDecay(1.0, 100),
        until=100,
    ),
    Case(
        "cosine(0.5, 60, end=0.1)",
        {0: 0.5, 10: 0.3 + SQRT3 / 10, 20: 0.4, 30: 0.3, 40: 0.2, 60: 0.1, 61: 0.1},
        torch=lambda s, o: s.CosineAnnealingLR(o, T_max=60, eta_min=0.1),
        keras=lambda s: s.CosineDecay(0.5, 60, alpha=0.2),
        lr=0.5,
        until=60,
    ),
    Case(
        "cosine(1e-2, steps=110, warmup=50)",
        {0: 0.0, 10: 0.002, 25: 0.005, 50: 0.01, 70: 0.0075, 80: 0.005, 110: 0.0, 111: 0.0},
        keras=lambda s: s.CosineDecay(0.0, 60, warmup_target=1e-2, warmup_steps=50),
    ),
    Case(
        "cosine(0.8, 100, 20, start=0.2, end=0.1)",
        {0: 0.2, 10: 0.5, 20: 0.8, 60: 0.45, 100: 0.1, 101: 0.1},
        torch=lambda s, o: s.SequentialLR(
            o,
            [
                s.LinearLR(o, start_factor=0.25, end_factor=1.0, total_iters=20),
                s.CosineAnnealingLR(o, T_max=80, eta_min=0.1),
            ],
            milestones=[20],
        ),
        keras=lambda s: s.CosineDecay(0.2, 80, alpha=0.125, warmup_target=0.8, warmup_steps=20),
        lr=0.8,
        until=100,
    ),
    Case("cosine(1.0, 1)", {0: 1.0, 1: 0.0}),
    Case("cosine(1.0, 3, 2)", {0: 0.0, 1: 0.5, 2: 1.0, 3: 0.0}),
    Case(
        "cosine_restarts(1.0, 8)",
        {0: 1.0, 2: (2 + SQRT2) / 4, 4: 0.5, 8: 1.0, 12: 0.5, 800: 1.0, 804: 0.5},
        torch=lambda s, o: s.CosineAnnealingWarmRestarts(o, T_0=8),
        keras=lambda s: s.CosineDecayRestarts(1.0, 8, t_mul=1.0),
    ),
    Case(
        "cosine_restarts(0.5, 7, 2, end=0.1)",
        {0: 0.5, 7: 0.5, 14: 0.3, 21: 0.5, 35: 0.3, 49: 0.5, 77: 0.3, 105: 0.5},
        torch=lambda s, o: s.CosineAnnealingWarmRestarts(o, T_0=7, T_mult=2, eta_min=0.1),
        lr=0.5,
    ),
    Case(
        "cosine_restarts(1.0, 8, 2)",
        {0: 1.0, 4: 0.5, 8: 1.0, 16: 0.5, 24: 1.0, 40: 0.5, 56: 1.0},
        keras=lambda s: s.CosineDecayRestarts(1.0, 8, t_mul=2.0),
    ),
    Case("cosine_restarts(1.0, 1)", {0: 1.0, 1: 1.0}),
    Case(
        "one_cycle(1.0, 100)",
        {0: 0.04, 29: 1.0, 64: 0.500002, 99: 4e-6, 100: 4e-6, 999: 4e-6},
        torch=lambda s, o: s.OneCycleLR(o, 1.0, total_steps=100),
        until=99,
    ),
    Case(
        "one_cycle(1.0, 41, pct_start=0.5, div_factor=10, final_div_factor=100, anneal='linear')",
        {0: 0.1, 13: 0.7, 30: 20.021 / 41, 40: 0.001, 41: 0.001},
        torch=lambda s, o: s.OneCycleLR(
            o,
            1.0,
            total_steps=41,
            pct_start=0.5,
            div_factor=10,
            final_div_factor=100,
            anneal_strategy="linear",
        ),
        until=40,
    ),
    Case(
        "one_cycle(0.9, 110, pct_start=0.4, div_factor=9, three_phase=True)",
        {0: 0.1, 43: 0.9, 86: 0.1, 109: 1e-5, 110: 1e-5},
        torch=lambda s, o: s.OneCycleLR(o, 0.9, total_steps=110, pct_start=0.4, div_factor=9, three_phase=True),
        until=109,
    ),
    Case(
        "one_cycle(1.0, 20, pct_start=1.0)",
        {0: 0.04, 19: 1.0, 20: 4e-6},
        torch=lambda s, o: s.OneCycleLR(o, 1.0, total_steps=20, pct_start=1.0),
        until=19,
    ),
    Case(
        "one_cycle(1.0, 20, pct_start=0.0)",
        {19: 4e-6, 20: 4e-6},
        torch=lambda s, o: s.OneCycleLR(o, 1.0, total_steps=20, pct_start=0.0),
        until=19,
    ),
    Case("one_cycle(1.0, 10, pct_start=0.1)", {0: 1.0, 9: 4e-6}),
    Case("one_cycle(1.0, 1)", {0: 4e-6, 1: 4e-6}),
    Case(
        "join([linear(0.1, 1.0, 9), exponential(1.0, 0.9), step(1.0, 10)], [20, 50])",
        {0: 0.1, 5: 0.6, 9: 1.0, 19: 1.0, 20: 1.0, 22: 0.81, 50: 1.0, 59: 1.0, 60: 0.1},
        torch=lambda s, o: s.SequentialLR(
            o,
            [
                s.LinearLR(o, start_factor=0.1, end_factor=1.0, total_iters=9),
                s.ExponentialLR(o, gamma=0.9),
                s.StepLR(o, step_size=10),
            ],
            milestones=[20, 50],
        ),
    ),
    Case("join([constant(2.0)], [])", {0: 2.0, 5: 2.0}),
]

every_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.call)
torch_cases = [c for c in CASES if c.torch]
keras_cases = [c for c in CASES if c.keras]


@every_case
def test_values_by_hand(case: Case) -> None:
    got = {t: case.schedule(t) for t in case.values}
    assert got == pytest.approx(case.values, rel=1e-14, abs=1e-16)


@pytest.mark.parametrize("case", torch_cases, ids=lambda c: c.call)
def test_equals_torch(case: Case) -> None:
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=case.lr, momentum=0.9)
    assert case.torch is not None
    scheduler = case.torch(torch.optim.lr_scheduler, optimizer)
    for t in range(case.until + 1):
        assert abs(case.schedule(t) - optimizer.param_groups[0]["lr"]) <= 1e-12, t
        optimizer.step()
        if t < case.until:
            scheduler.step()


@pytest.mark.parametrize("case", keras_cases, ids=lambda c: c.call)
def test_equals_keras(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    if "KERAS_BACKEND" not in os.environ:
        monkeypatch.setenv("KERAS_BACKEND", "torch")
        pytest.importorskip("torch")
    keras = pytest.importorskip("keras")
    assert case.keras is not None
    theirs = case.keras(keras.optimizers.schedules)
    for t in range(LAST):
        assert abs(case.schedule(t) - float(theirs(t))) <= 1e-6, t


@every_case
def test_repr_pickle_copy_and_equality(case: Case) -> None:
    schedule = case.schedule
    assert eval(repr(schedule), vars(schedules)) == schedule
    for twin in (pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule)):
        assert twin == schedule and hash(twin) == hash(schedule) and repr(twin) == repr(schedule)
        assert [twin(t) for t in range(LAST)] == [schedule(t) for t in range(LAST)]


@every_case
def test_gives_finite_floats_for_numpy_steps_too(case: Case) -> None:
    for t in range(0, LAST, 7):
        rate = case.schedule(t)
        assert type(rate) is float and 0.0 <= rate < math.inf
        assert case.schedule(np.int64(t)) == pytest.approx(rate, rel=1e-15)  # type: ignore[arg-type]


def test_repr_names_the_arguments() -> None:
    assert repr(schedules.cosine(1e-2, steps=10_000, warmup=500)) == (
        "cosine(lr=0.01, steps=10000, warmup=500, start=0.0, end=0.0)"
    )
    assert schedules.constant(1.0) != schedules.constant(2.0)
    assert schedules.constant(1.0) != schedules.linear(1.0, 1.0, 1)


def test_join_takes_any_callable_and_restarts_its_step() -> None:
    schedule = schedules.join([lambda t: t + 0.5, lambda t: -float(t)], [3])
    assert [schedule(t) for t in range(5)] == [0.5, 1.5, 2.5, 0.0, -1.0]


rates = st.floats(0.0, 10.0, allow_subnormal=False)
counts = st.integers(1, 10_000)


@settings(deadline=None)
@given(start=rates, end=rates, steps=counts, t=st.integers(0, 20_000), power=st.floats(0.1, 9.0))
def test_decays_stay_between_their_ends_and_meet_them(
    start: float, end: float, steps: int, t: int, power: float
) -> None:
    low, high = min(start, end), max(start, end)
    for schedule in (
        schedules.linear(start, end, steps),
        schedules.polynomial(start, steps, power, end=end),
        schedules.cosine(start, steps, end=end),
    ):
        assert schedule(0) == start
        assert schedule(steps) == schedule(steps + t) == end
        assert low * (1 - 1e-15) <= schedule(t) <= high * (1 + 1e-15)


@settings(deadline=None)
@given(period=st.integers(1, 50), growth=st.integers(1, 4), restarts=st.integers(0, 6))
def test_every_restart_begins_at_the_top(period: int, growth: int, restarts: int) -> None:
    schedule = schedules.cosine_restarts(0.3, period, growth, end=0.1)
    t = sum(period * growth**i for i in range(restarts))
    assert schedule(t) == 0.3
    half, odd = divmod(period * growth**restarts, 2)
    if not odd:
        assert schedule(t + half) == pytest.approx(0.2, rel=1e-14)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ("constant('0.1')", TypeError, "lr: expected a real number, got '0.1'"),
        ("constant(True)", TypeError, "lr: expected a real number, got True"),
        ("constant(-0.1)", ValueError, "lr: expected a finite number >= 0, got -0.1"),
        ("constant(float('nan'))", ValueError, "lr: expected a finite number >= 0, got nan"),
        ("constant(float('inf'))", ValueError, "lr: expected a finite number >= 0, got inf"),
        ("constant(10**400)", ValueError, "lr: expected a finite number >= 0, got 1000"),
        ("one_cycle(1, 9, div_factor=1e-320)", ValueError, "div_factor: expected a finite max_lr / div_factor"),
        (
            "one_cycle(1, 9, div_factor=1e-200, final_div_factor=1e-200)",
            ValueError,
            "final_div_factor: expected a finite lr_0 / final_div_factor, got 1e+200 / 1e-200",
        ),
        ("exponential(1, 0)", ValueError, "gamma: expected a finite number > 0, got 0"),
        ("exponential(1, 0.5, steps=0)", ValueError, "steps: expected an integer >= 1, got 0"),
        ("exponential(1, 0.5, staircase=1)", TypeError, "staircase: expected True or False, got 1"),
        ("step(1, 2.0)", TypeError, "step_size: expected an integer, got 2.0"),
        ("step(1, True)", TypeError, "step_size: expected an integer, got True"),
        ("multi_step(1, 3)", TypeError, "milestones: expected a sequence, got 3"),
        ("multi_step(1, [1, 'a'])", TypeError, "milestones[1]: expected an integer, got 'a'"),
        ("multi_step(1, [-1])", ValueError, "milestones[0]: expected an integer >= 0, got -1"),
        (
            "multi_step(1, [3, 3])",
            ValueError,
            "milestones: expected strictly increasing steps, got [3, 3]",
        ),
        (
            "piecewise_constant([2, 1], [1, 2, 3])",
            ValueError,
            "boundaries: expected strictly increasing steps, got [2, 1]",
        ),
        (
            "piecewise_constant([1], [1])",
            ValueError,
            "values: expected one more than boundaries, 2, got 1",
        ),
        ("piecewise_constant([], [-1])", ValueError, "values[0]: expected a finite number >= 0"),
        ("linear(0, None, 3)", TypeError, "end: expected a real number, got None"),
        ("polynomial(1, 3, -1.0)", ValueError, "power: expected a finite number >= 0, got -1.0"),
        ("inverse_time(1, -1)", ValueError, "rate: expected a finite number >= 0, got -1"),
        ("cosine(1, 10, 10)", ValueError, "warmup: expected fewer than steps=10, got 10"),
        ("cosine(1, 10, -1)", ValueError, "warmup: expected an integer >= 0, got -1"),
        ("cosine_restarts(1, 4, 1.5)", TypeError, "growth: expected an integer, got 1.5"),
        ("one_cycle(1, 9, anneal='exp')", ValueError, "anneal: expected 'cos' or 'linear', got"),
        ("one_cycle(1, 9, pct_start=1.5)", ValueError, "pct_start: expected a number from 0 to 1"),
        (
            "one_cycle(1, 9, pct_start=0.6, three_phase=True)",
            ValueError,
            "pct_start: expected a number from 0 to 0.5, got 0.6",
        ),
        ("one_cycle(1, 9, div_factor=0)", ValueError, "div_factor: expected a finite number > 0"),
        (
            "join([0.1], [])",
            TypeError,
            "schedules[0]: expected a callable step -> float, got 0.1",
        ),
        (
            "join([constant(1)], [3])",
            ValueError,
            "milestones: expected one fewer than schedules, 0, got 1",
        ),
        ("join([], [])", ValueError, "schedules: expected at least one, got none"),
    ],
)
def test_refuses(call: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        eval(call, vars(schedules))


@pytest.mark.parametrize("call", ["exponential({}, 1.1)", "step({}, 1, 1.1)", "multi_step({}, range(9999), 1.1)"])
def test_growth_beyond_all_floats(call: str) -> None:
    assert eval(call.format(1e-7), vars(schedules))(10_000) == math.inf
    assert eval(call.format(0.0), vars(schedules))(10_000) == 0.0


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), np.int64(1), 1])
def test_takes_numpy_scalars_and_keeps_python_floats(number: Any) -> None:
    assert type(schedules.constant(number)(0)) is float
    assert repr(schedules.step(1.0, np.int32(3))) == "step(lr=1.0, step_size=3, gamma=0.1)"  # type: ignore[arg-type]


def test_every_public_function_is_in_the_table() -> None:
    assert {c.call.split("(")[0] for c in CASES} == set(schedules.__all__)
