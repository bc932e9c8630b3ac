"""Matrix products, in the order of additions of the compiled ones."""

from __future__ import annotations

import numpy as np

from steepest.reference.arithmetic import Array, multiply_add

STEPS = 128


def matmul(a: Array, b: Array) -> Array:
    """a b, for a of shape (rows, depth) and b of shape (depth, columns).

    Summed in blocks of 128 steps, each one product after the other, and the blocks one after the
    other. A product and its addition are rounded together.
    """
    total = np.zeros((a.shape[0], b.shape[1]), a.dtype)
    with np.errstate(all="ignore"):
        for start in range(0, a.shape[1], STEPS):
            block = np.zeros_like(total)
            for k in range(start, min(start + STEPS, a.shape[1])):
                block = multiply_add(a[:, k, None], b[k], block)
            total = total + block
    return total
