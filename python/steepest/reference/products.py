"""Matrix products, in the order of additions of the compiled ones."""

from __future__ import annotations

import numpy as np

from steepest.reference.functions import Array

STEPS = 128


def matmul(a: Array, b: Array) -> Array:
    """a b, for a of shape (rows, depth) and b of shape (depth, columns).

    Summed in blocks of 128 steps, each one product after the other, and the blocks one after the
    other. In float32 a product and its addition are rounded together, in float64 each by itself.
    """
    total = np.zeros((a.shape[0], b.shape[1]), a.dtype)
    with np.errstate(all="ignore"):
        for start in range(0, a.shape[1], STEPS):
            block = np.zeros_like(total)
            for k in range(start, min(start + STEPS, a.shape[1])):
                block = _multiply_add(a[:, k, None], b[k], block)
            total = total + block
    return total


def _multiply_add(a: Array, b: Array, c: Array) -> Array:
    """a b + c; of float32 the exact value, rounded once.

    Double holds a b, but not always the sum. Where that lies between two doubles, the one with an
    odd last bit is taken, which rounds to float32 as the exact sum does (Boldo and Melquiond, 2008).
    """
    if c.dtype == np.float64:
        return np.asarray(a * b + c)
    product, before = a.astype(float) * b.astype(float), c.astype(float)
    total = product + before
    part = total - product
    error = (product - (total - part)) + (before - part)
    bits = total.view(np.int64)
    up = (error > 0) == (total > 0)
    odd = np.where((bits % 2 == 0) & ((error > 0) | (error < 0)), bits + np.where(up, 1, -1), bits)
    return np.asarray(odd.view(float).astype(np.float32))
