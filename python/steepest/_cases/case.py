"""A case: some options and data for a kernel, what it gives and what it should."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Options: TypeAlias = dict[str, Any]
Results: TypeAlias = dict[str, Array]


class Sum(NamedTuple):
    """What a sum should be, by `math.fsum` of its terms; a unit in the last place of their magnitudes' sum."""

    exact: float
    unit: float


@dataclass
class Expected:
    """What a kernel must give: arrays to the bit (NaN for NaN), and sums within their bound too."""

    values: Results
    sums: dict[str, Sum] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Case:
    """Some options and data for a kernel.

    `units` is the size of the blocks that threads share: elements, or for what works in blocks of its own
    blocks of these; 0 where one thread will do.
    """

    name: str
    options: Mapping[str, Any]
    expected: Callable[[], Expected]
    actual: Callable[[], Results]
    units: int


def ulps(actual: Array, expected: Array) -> tuple[float, int]:
    """The largest distance in units in the last place, and where it is.

    From -0 to +0 it is 1, from NaN to NaN of any sign and payload 0, from NaN to a number infinite. Between integers,
    such as codes, it is the difference.
    """
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return math.inf, 0
    if actual.dtype.kind in "iu":
        gaps = np.abs(actual.ravel().astype(np.int64) - expected.ravel())
        return (float(gaps.max()), int(gaps.argmax())) if gaps.any() else (0, 0)
    U: Any = np.uint32 if actual.dtype == np.float32 else np.uint64
    a, b = actual.ravel(), expected.ravel()
    differ = np.flatnonzero((a.view(U) != b.view(U)) & ~(np.isnan(a) & np.isnan(b)))
    if differ.size == 0:
        return 0, 0
    a, b = a[differ], b[differ]
    top = U(1 << (8 * actual.itemsize - 1))
    i, j = (np.where(x & top, ~x, x | top) for x in (a.view(U), b.view(U)))  # ordered as the numbers are
    distance = (np.maximum(i, j) - np.minimum(i, j)).astype(float)
    distance[np.isnan(a) | np.isnan(b)] = math.inf
    worst = distance.argmax()
    return float(distance[worst]), int(differ[worst])


def describe(options: Mapping[str, Any]) -> str:
    def text(value: Any) -> str:
        if isinstance(value, np.ndarray):
            return f"{value.dtype} {value.shape}"
        return f"{value:.6g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{name}={text(value)}" for name, value in options.items()) or "defaults"
