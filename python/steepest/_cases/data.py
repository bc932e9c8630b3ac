"""The arrays that cases are made of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from steepest._cases.case import Array

WIDTHS = 2, 4, 8, 16  # elements of a vector: from float64 in sse2 to float32 in avx512
SIZES = sorted({0, 1, 31, 32, 33, *(n for w in WIDTHS for n in (w - 1, w, w + 1, 8 * w + 3))})
LARGE = 2047, 2048, 2049, 4999  # around a block of a sum, and odd
LINE = 64  # bytes: as far as the widest vector aligns


def special_values(dtype: Any) -> Array:
    """What arithmetic treats in a way of its own, and its neighbours."""
    f = np.finfo(dtype)
    tiny, least = float(f.tiny), float(f.smallest_subnormal)
    positive = [
        0,
        least,
        tiny - least,
        tiny,
        1.5 * tiny,
        math.sqrt(tiny),
        float(f.eps),
        0.5,
        1,
        88,
        float(f.max),
        math.inf,
    ]
    return np.array([*positive, *(-x for x in positive), math.nan], dtype=dtype)


def pairs(values: Array) -> tuple[Array, Array]:
    """Every value with every value."""
    return np.repeat(values, len(values)), np.tile(values, len(values))


def normal(rng: np.random.Generator, shape: Any, dtype: Any) -> Array:
    """Ordinary numbers, one in ten of them zero."""
    x = rng.standard_normal(shape) * (rng.random(shape) > 0.1)
    return np.asarray(x, dtype)


def spread(rng: np.random.Generator, shape: Any, dtype: Any) -> Array:
    """Magnitudes from e^-40 to e^40: the squares of the smallest are subnormal in float32."""
    x = np.exp(rng.uniform(-40, 40, shape)) * rng.choice([-1.0, 1.0], shape)
    return np.asarray(x, dtype)


def any_bits(rng: np.random.Generator, n: int, dtype: Any) -> Array:
    """Random bits: every exponent as likely as any other."""
    return np.frombuffer(rng.bytes(n * np.dtype(dtype).itemsize), dtype=dtype)


def placed(x: Array, start: int) -> Array:
    """A copy of x in memory that begins `start` elements after a multiple of 64 bytes."""
    memory = np.empty(x.nbytes + LINE + start * x.itemsize, np.uint8)
    begin = -memory.__array_interface__["data"][0] % LINE + start * x.itemsize
    y = memory[begin : begin + x.nbytes].view(x.dtype).reshape(x.shape)
    y[...] = x
    return y
