"""`steepest verify`: compares every kernel with its NumPy formula, on all that this machine has.

Element-wise results must have the formula's bits (NaN for NaN, +0 for +0), on every ISA, with either
engine and any number of threads. So must losses and norms, which are sums in one fixed order; they
must also lie within 4 units in the last place of the sum of their terms' magnitudes of `math.fsum`.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from steepest import _core
from steepest._cases import KERNELS, PAIRS, Case, Expected, ulps

THREADS = 1, 2, 3, 7
SUM_BOUND = 4  # units in the last place of the sum of the terms' magnitudes
AT_A_TIME = 24  # cases whose expected results are kept
SHOWN = 5  # violations of a kernel, dtype and ISA that are printed in full


class Setting(NamedTuple):
    """What runs a kernel."""

    isa: str
    engine: str
    threads: int

    def __str__(self) -> str:
        return f"{self.isa}, {self.engine} engine, {self.threads} thread{'s' * (self.threads != 1)}"


@dataclass
class Row:
    """What was found of a kernel, a dtype and an ISA."""

    cases: int = 0
    error: float = 0
    sum_error: float | None = None
    violations: list[str] = field(default_factory=list)


def violations(case: Case, expected: Expected, row: Row) -> Iterator[str]:
    """Runs a case, counts it into the row, and says what is wrong with it."""
    row.cases += 1
    try:
        actual = case.actual()
    except Exception as raised:
        yield f"{type(raised).__name__}: {raised}"
        return
    if expected.values.keys() != actual.keys():
        yield f"expected {', '.join(expected.values)}; got {', '.join(actual)}"
        return
    for name, value in expected.values.items():
        error, at = ulps(actual[name], value)
        row.error = max(row.error, error)
        if error:
            where = f" at element {at} of {value.size:,}" if value.size > 1 else ""
            given, wanted = (x.ravel()[at : at + 1].tolist() or [x.shape] for x in (actual[name], value))
            yield f"{name}{where}: {given[0]!r} is {error:g} ULP from {wanted[0]!r}"
    for name, total in expected.sums.items():
        error = abs(float(actual[name][0]) - total.exact) / total.unit
        row.sum_error = max(row.sum_error or 0, error)
        if not error <= SUM_BOUND:
            yield f"{name}: {float(actual[name][0])!r} is {error:.3g} units from the exact {total.exact!r}"


def all_settings(isas: Iterable[str], quick: bool = False) -> list[Setting]:
    """Every ISA, engine and number of threads; in a hurry, OpenMP only with more threads than it would spin for."""
    engines = ("pool", "openmp") if _core.build_info()["openmp"] else ("pool",)
    settings = (Setting(*choice) for choice in itertools.product(isas, engines, THREADS))
    return [setting for setting in settings if not (quick and setting.engine == "openmp" and setting.threads < 3)]


def apply(setting: Setting) -> None:
    _core._set_isa(setting.isa)
    _core.set_threading(setting.engine)
    _core.set_num_threads(setting.threads)


@contextmanager
def settings_restored() -> Iterator[None]:
    """Leaves the ISA, the engine, the threads and how they share as they were."""
    before = Setting(_core.build_info()["isa"], _core.get_threading(), _core.get_num_threads())
    try:
        yield
    finally:
        apply(before)
        _core._share_blocks_of(0)


def check(
    kernel: str, dtype: Any, settings: Iterable[Setting], quick: bool = False
) -> tuple[dict[str, Row], dict[Setting, list[int]]]:
    """A row for each ISA, and how many blocks each thread of each setting ran."""
    settings = list(settings)
    rows = {setting.isa: Row() for setting in settings}
    blocks: dict[Setting, list[int]] = {}
    cases = KERNELS[kernel](dtype, quick)
    while chunk := list(itertools.islice(cases, AT_A_TIME)):
        expected = [case.expected() for case in chunk]
        for setting in settings:
            row = rows[setting.isa]
            apply(setting)
            for case, wanted in zip(chunk, expected, strict=True):
                if not case.units and setting[1:] != ("pool", 1):
                    continue
                _core._share_blocks_of(case.units)
                row.violations += [
                    f"{kernel} {dtype}, {setting}: {case.name}: {what}" for what in violations(case, wanted, row)
                ]
                if case.units:
                    ran = blocks.get(setting, [0] * setting.threads)
                    blocks[setting] = [a + b for a, b in zip(ran, _core._blocks_run(), strict=True)]
    for setting, ran in blocks.items():
        rows[setting.isa].violations += [
            f"{kernel} {dtype}, {setting}: thread {i + 1} ran no block" for i, n in enumerate(ran) if n == 0
        ]
    return rows, blocks


def _print_row(kernel: str, dtype: Any, isa: str, row: Row) -> None:
    sums = "" if row.sum_error is None else f"{row.sum_error:.2f}"
    verdict = "FAILED" * bool(row.violations)
    figures = f"{row.cases:>6,} {row.error:>7g} {sums:>7}  {verdict}"
    print(f"{kernel:<22} {dtype!s:<8} {isa:<7} {figures}".rstrip(), flush=True)
    for violation in row.violations[:SHOWN]:
        print(f"  {violation}")
    if (more := len(row.violations) - SHOWN) > 0:
        print(f"  and {more:,} more")


def run(quick: bool = False, *, kernels: Collection[str] | None = None, isas: Collection[str] | None = None) -> int:
    """Prints a table, a row for each kernel, dtype and ISA; returns 1 if anything is wrong, else 0.

    `quick` takes fewer sizes, combinations of options and settings. `kernels` and `isas` choose some.
    """
    started = time.perf_counter()
    build = _core.build_info()
    isas = build["isas"] if isas is None else isas
    kernels = KERNELS if kernels is None else kernels
    print(f"steepest {_core.__version__}: every kernel against its NumPy formula, bit for bit")
    print(f"ISAs      {', '.join(isas)}")
    print(f"engines   {'pool, openmp' if build['openmp'] else 'pool; the compiler had no OpenMP'}")
    print(f"threads   {', '.join(map(str, THREADS))}\n")
    print(f"{'':46}largest error, in ULP")
    print(f"{'kernel':<22} {'dtype':<8} {'ISA':<7} {'cases':>6} {'values':>7} {'sums':>7}")

    cases = wrong = 0
    blocks: dict[tuple[str, int], Counter[int]] = {}
    with settings_restored(), np.errstate(all="ignore"):
        for kernel, dtype in (pair for pair in PAIRS if pair[0] in kernels):
            rows, ran = check(kernel, dtype, all_settings(isas, quick), quick)
            for isa, row in rows.items():
                _print_row(kernel, dtype, isa, row)
                cases += row.cases
                wrong += len(row.violations)
            for setting, counts in ran.items():
                blocks.setdefault(setting[1:], Counter()).update(dict(enumerate(counts)))

    print("\nsums: units in the last place of the sum of the terms' magnitudes, from math.fsum")
    if blocks:
        print("\nblocks that each thread ran")
    for (engine, threads), by_thread in blocks.items():
        label = f"{threads} thread{'s' * (threads != 1)}"
        print(f"{engine:<7} {label:<10}" + "".join(f" {by_thread[i]:>9,}" for i in range(threads)))
    seconds = f"({time.perf_counter() - started:.0f} s)"
    if wrong:
        print(f"\nFAILED: {wrong:,} violations in {cases:,} cases of {len(kernels)} kernels {seconds}")
        return 1
    print(f"\nverified: {cases:,} cases of {len(kernels)} kernels, no difference {seconds}")
    return 0
