"""Cases of the global norm, and of exp, log and log1p."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from steepest import _core, reference
from steepest._cases.case import Array, Case, Expected, Results, Sum
from steepest._cases.data import LARGE, SIZES, any_bits, normal, placed, special_values, spread


def _norm_by_reference(arrays: Sequence[Array]) -> Expected:
    values = np.concatenate([x.astype(float).ravel() for x in arrays]) if arrays else np.zeros(0)
    norm = reference.global_norm(arrays)
    expected = Expected({"norm": np.array([norm])})
    if np.isfinite(values).all():
        top = math.frexp(np.abs(values).max(initial=0))[1]
        with np.errstate(all="ignore"):
            scaled = np.ldexp(values, -top)
            exact = float(np.ldexp(math.sqrt(math.fsum(scaled * scaled)), top))
        if math.isfinite(exact):
            expected.sums["norm"] = Sum(exact, math.ulp(exact))
    return expected


def _norm(arrays: Sequence[Array]) -> Results:
    return {"norm": np.array([_core.global_norm(placed(x, i % 2) for i, x in enumerate(arrays))])}


def norm_cases(dtype: Any, quick: bool) -> Iterator[Case]:
    rng = np.random.default_rng(3)
    f = np.finfo(dtype)
    lists: dict[str, list[Array]] = {"no arrays": [], "two empty arrays": [np.zeros(0, dtype)] * 2}
    for make in (normal, spread):
        lists |= {f"{make.__name__} ({n},)": [make(rng, n, dtype)] for n in (*SIZES, *LARGE, 20_001)}
        lists[f"{make.__name__}, every size"] = [make(rng, n, dtype) for n in (*SIZES, *LARGE, 20_001)]
    lists["float32 and float64"] = [normal(rng, 3000, t) for t in (np.float32, np.float64, np.float32)]
    lists |= {f"one {x}": [np.array([x])] for x in special_values(dtype)}
    for largest in (float(f.max) / 8, float(f.tiny), 3 * float(f.smallest_subnormal), math.sqrt(float(f.tiny))):
        lists[f"up to {largest:g}"] = [(largest * rng.uniform(-1, 1, n)).astype(dtype) for n in (33, 5000, 0)]
    for case, arrays in lists.items():
        units = 0 if quick and sum(x.size for x in arrays) < LARGE[-1] else 1
        yield Case(case, {}, partial(_norm_by_reference, arrays), partial(_norm, arrays), units)


def function_points(name: str, dtype: Any, n: int = 100_000) -> Array:
    """Where exp, log or log1p has something to say: random, and around every place that is special."""
    rng = np.random.default_rng(4)
    f = np.finfo(dtype)
    x = [special_values(dtype), any_bits(rng, n, dtype), spread(rng, n, dtype)]
    if name == "exp":
        low, high = math.log(float(f.smallest_subnormal)), math.log(float(f.max))
        k = np.arange(math.floor(low) - 2, math.ceil(high) + 3)
        turns = np.concatenate([k, (k + 0.5), k * math.log(2), (k + 0.5) * math.log(2)]).astype(dtype)
        x += [turns, rng.uniform(low - 2, high + 2, n).astype(dtype), rng.uniform(-1, 1, n).astype(dtype)]
    else:
        powers = np.ldexp(1.0, np.arange(f.minexp - f.nmant, f.maxexp))
        turns = np.concatenate([powers, powers * math.sqrt(0.5), np.array([1.0])]).astype(dtype)
        x += [turns, (1 + rng.uniform(-0.5, 1, n)).astype(dtype), (1 + 1e-4 * rng.standard_normal(n)).astype(dtype)]
    with np.errstate(all="ignore"):
        x += [np.nextafter(turns, dtype.type(np.inf)), np.nextafter(turns, dtype.type(-np.inf))]
    return np.concatenate(x)


def _function_by_reference(name: str, x: Array) -> Expected:
    return Expected({"value": getattr(reference, name)(x)})


def _function(name: str, x: Array, start: int) -> Results:
    return {"value": getattr(_core, f"_{name}")(placed(x, start))}


def function_cases(name: str, dtype: Any, quick: bool) -> Iterator[Case]:
    points = function_points(name, np.dtype(dtype), 2_000 if quick else 100_000)
    for n, start in itertools.product((*SIZES, *LARGE, len(points)), (0, 1)):
        x = points[-n:] if n else points[:0]
        yield Case(
            f"{n} values, start={start}",
            {},
            partial(_function_by_reference, name, x),
            partial(_function, name, x, start),
            0,
        )
