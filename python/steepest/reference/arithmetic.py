"""What the CPU has in one instruction and NumPy has not, and sums that lose nothing."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]


def add(hi: Any, lo: Any, x: Any) -> tuple[Any, Any]:
    """What rounding loses goes to lo (Knuth's two-sum)."""
    s = hi + x
    t = s - hi
    return s, lo + ((hi - (s - t)) + (x - t))


def multiply_add(a: Any, b: Any, c: Any) -> Array:
    """a b + c: the exact value, rounded once, as CPUs do it (the fused multiply-add of IEEE 754).

    It is the sum of a few doubles. Where some of them add up to what lies between two doubles, the
    one with an odd last bit is taken: rounded once more, it gives what the exact sum does. Boldo and
    Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd",
    2008.
    """
    with np.errstate(all="ignore"):
        if c.dtype == np.float32:
            product = a.astype(float) * b.astype(float)  # which double holds
            return np.asarray(_to_odd(product, c.astype(float)).astype(np.float32))
        return _multiply_add_double(*np.broadcast_arrays(a, b, c))


def _to_odd(a: Array, b: Array) -> Array:
    """a + b; where that lies between two doubles, the one with an odd last bit."""
    total, error = add(a, 0.0, b)
    bits = total.view(np.int64)
    up = (error > 0) == (total > 0)
    odd = np.where((bits % 2 == 0) & ((error > 0) | (error < 0)), bits + np.where(up, 1, -1), bits)
    return np.asarray(odd.view(float))


def _multiply_add_double(a: Array, b: Array, c: Array) -> Array:
    high, low = _product(a, b)
    middle, rest = add(c, 0.0, low)
    top, lost = add(high, 0.0, middle)
    result = top + _to_odd(rest, lost)
    # Without digits to lose: infinities, what is not a number, and zeros
    plain = ~np.isfinite(a) | ~np.isfinite(b) | (a == 0) | (b == 0)
    result = np.where(plain, a * b + c, np.where(np.isfinite(c), result, c))
    size, old = np.abs(high), np.abs(c)
    fits = (size > 2.0**-900) & (size < 2.0**1000) & (old < 2.0**1000) & ((old > 2.0**-900) | (c == 0))
    fits &= (np.abs(a) < 2.0**990) & (np.abs(b) < 2.0**990)
    # Near the ends of the range the parts above would not be exact.
    for i in map(tuple, np.argwhere(~(plain | fits) & np.isfinite(c))):
        result[i] = _exactly(float(a[i]), float(b[i]), float(c[i]))
    return result


def _product(a: Array, b: Array) -> tuple[Any, Any]:
    """a b as the sum of two doubles, from halves of the factors (Dekker; Veltkamp)."""
    half_a, half_b = (x * (2.0**27 + 1) - (x * (2.0**27 + 1) - x) for x in (a, b))
    rest_a, rest_b = a - half_a, b - half_b
    high = a * b
    return high, ((half_a * half_b - high) + half_a * rest_b + rest_a * half_b) + rest_a * rest_b


def _exactly(a: float, b: float, c: float) -> float:
    """a b + c in integers, whose quotient Python rounds once."""
    (i, p), (j, q), (k, r) = (x.as_integer_ratio() for x in (a, b, c))
    sum_, over = i * j * r + k * p * q, p * q * r
    try:
        return sum_ / over
    except OverflowError:
        return math.inf if sum_ > 0 else -math.inf
