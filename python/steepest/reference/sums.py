"""Sums in one order of additions, in double, for every ISA and any number of threads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from steepest.reference.arithmetic import Array, add

SUM_BLOCK = 2048  # a sum is made over blocks of so many elements
LANES = 16  # within a block in so many lanes,
SHORT = 32  # unless the block is shorter than this
ROW_LANES = 32  # lanes of a row's sum in the element type
MAX_ROWS, TILE, FEW_CLASSES = 256, 16, 32  # rows of a block of softmax; rows of few classes come in tiles
ROW_BLOCK = 8192  # elements of a block of rows of more classes


def row_sums(terms: Array, dtype: Any = None) -> tuple[Array, Array]:
    """(rows, n) -> hi and lo of each row's sum, in 16 lanes if n >= 32.

    Of terms made of float32 (their own dtype, or the one given), what rounding loses is next to nothing.
    """
    single = (dtype or terms.dtype) == np.float32
    terms = terms.astype(np.float64)
    rows, n = terms.shape
    lanes = LANES if n >= SHORT else 1
    hi, lo = np.zeros((rows, lanes)), np.zeros((rows, lanes))
    with np.errstate(all="ignore"):
        for i in range(0, n, lanes):
            part = terms[:, i : i + lanes]
            w = part.shape[1]
            if single:
                hi[:, :w] += part
            else:
                hi[:, :w], lo[:, :w] = add(hi[:, :w], lo[:, :w], part)
        while lanes > 1:
            lanes //= 2
            a, b = add(hi[:, :lanes], lo[:, :lanes], hi[:, lanes:])
            hi, lo = a, b + lo[:, lanes:]
    return hi[:, 0], lo[:, 0]


def lane_sums(x: Array, lanes: int = ROW_LANES) -> Array:
    """(rows, n) -> each row's sum, in lanes of the element type for each block.

    The lanes fold in double, and the blocks' sums are added one after the other.
    """
    rows, n = x.shape
    hi, lo = np.zeros(rows), np.zeros(rows)
    with np.errstate(all="ignore"):
        for begin in range(0, n, SUM_BLOCK):
            block = x[:, begin : begin + SUM_BLOCK]
            sums = np.zeros((rows, lanes), x.dtype)
            for i in range(0, block.shape[1], lanes):
                part = block[:, i : i + lanes]
                sums[:, : part.shape[1]] += part
            whole = sums.astype(np.float64)
            while whole.shape[1] > 1:
                half = whole.shape[1] // 2
                whole = whole[:, :half] + whole[:, half:]
            hi, lo = add(hi, lo, whole[:, 0])
    return np.asarray(value(hi, lo))


def value(hi: Any, lo: Any) -> Any:
    with np.errstate(all="ignore"):
        x = hi + lo
        return np.where(np.isfinite(x), x, hi)


def combine(parts: Sequence[tuple[Any, Any]]) -> float:
    """The sum of (hi, lo) pairs, one after the other."""
    hi, lo = np.float64(0), np.float64(0)
    with np.errstate(all="ignore"):
        for h, low in parts:
            s = hi + h
            t = s - hi
            hi, lo = s, lo + (((hi - (s - t)) + (h - t)) + low)
    return float(value(hi, lo))


def sums_less_one(e: Array, lanes: int = ROW_LANES) -> Array:
    """The sum of a row whose maximum is 1, less one; less than 1, it is made without the maximum."""
    whole = lane_sums(e, lanes)
    return np.where(whole >= 2, whole - 1, lane_sums(np.where(e == 1, e.dtype.type(0), e), lanes))


def total_of_rows(terms: Array, classes: int) -> float:
    """The sum of the rows' terms, in blocks of rows."""
    if classes < FEW_CLASSES:
        per_block = min(SUM_BLOCK // classes, MAX_ROWS) // TILE * TILE
    else:
        per_block = min(max(ROW_BLOCK // classes, 1), MAX_ROWS)
    parts: list[tuple[Any, Any]] = []
    for first in range(0, len(terms), per_block):
        parts += zip(*row_sums(terms[None, first : first + per_block]), strict=True)
    return combine(parts)


def _block_sums(terms: Array, dtype: Any = None) -> list[tuple[Any, Any]]:
    whole = terms.size // SUM_BLOCK * SUM_BLOCK
    parts: list[tuple[Any, Any]] = []
    for rows in (terms[:whole].reshape(-1, SUM_BLOCK), terms[whole:].reshape(1, -1)):
        if rows.size:
            parts += zip(*row_sums(rows, dtype), strict=True)
    return parts


def total(terms: Array, dtype: Any = None) -> float:
    """The sum of all elements, which may be made of elements of another dtype."""
    return combine(_block_sums(terms.ravel(), dtype))


def global_norm(arrays: Sequence[Array]) -> float:
    """sqrt(sum of squares) over all arrays; rescaled where squares leave the range of double."""

    def squares(scale: float) -> float:
        parts: list[tuple[Any, Any]] = []
        with np.errstate(all="ignore"):
            for x in arrays:
                y = x.ravel(order="K").astype(np.float64) * scale
                parts += _block_sums(y * y, x.dtype)
        return combine(parts)

    sum_, scale = squares(1.0), 1.0
    has_double = any(x.dtype == np.float64 for x in arrays)
    if has_double and (not math.isfinite(sum_) or sum_ < 2.0**-900):
        scale = 2.0**600 if math.isfinite(sum_) else 2.0**-600
        sum_ = squares(scale)
    return math.sqrt(sum_) / scale
