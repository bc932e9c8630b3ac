"""Cases of the small matrix products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from steepest import _core, reference
from steepest._cases.case import Array, Case, Expected, Results, describe
from steepest._cases.data import normal, placed, special_values, spread

# Rows, depth, columns: every height of a tile, every rest of a panel, a block of steps and its neighbours.
WIDTHS = 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33
SHAPES = [(1 + i, 5, width) for i, width in enumerate(WIDTHS)]
SHAPES += [(3, depth, 6) for depth in (1, 127, 128, 129, 300)] + [(0, 3, 2), (2, 0, 3), (3, 2, 0), (32, 140, 130)]
SHAPES += [(130, 32, 40), (300, 5, 270)]  # more than a strip of rows and of columns
SHAPES += [(5, 520, 130), (1, 385, 128), (7, 900, 150), (40, 600, 70)]  # shared by their steps

# An a of many zeros: odd numbers of rows, rests of steps and of columns
SPARSE = [(3, 700, 33), (16, 300, 47), (40, 33, 100), (133, 40, 31), (33, 520, 130), (2, 260, 128), (70, 130, 8)]
SPARSE += [(61, 520, 100), (257, 600, 20)]
# A b of many zeros: rests of rows, steps and columns, of a register and of a share
LISTED = [(177, 300, 33), (400, 40, 17), (163, 70, 130), (250, 200, 100), (784, 32, 128), (199, 129, 20), (500, 65, 16)]
LISTED += [(17, 300, 33), (130, 256, 24)]


def _by_reference(a: Array, b: Array, bias: Array, grad: Array | None) -> Expected:
    product = reference.matmul(a, b)
    sums = reference.matmul(np.ones((1, len(b)), b.dtype), b)[0]
    dense = reference.activate("relu", product, bias)
    results = {"matmul": product, "dense": dense, "dweight": product, "dbias": sums}
    if grad is not None:
        results |= {
            "sparse": dense,
            "sparse dweight": reference.matmul(a.T, np.where(dense > 0, grad, 0).astype(a.dtype)),
        }
    return Expected(results)


def _sparse(a: Array, b: Array, bias: Array, grad: Array) -> Results:
    """The same by rows that hold only what is not 0."""
    rows, columns = np.nonzero(a)
    starts = np.searchsorted(rows, np.arange(len(a) + 1))
    dweight, dbias = np.full_like(b, 7), np.full_like(bias, 7)
    chain = _core.Chain([(b, bias, "relu", 0.0, dweight, dbias)], 0)
    outputs = chain.forward_sparse(starts, columns.astype(np.int32), a[rows, columns]).copy()
    chain.backward(grad.copy())
    return {"sparse": outputs, "sparse dweight": dweight}


def _products(a: Array, b: Array, bias: Array, orders: str, start: int, grad: Array | None) -> Results:
    left, right = (placed(x if order == "C" else x.T, start) for x, order in zip((a, b), orders, strict=True))
    left, right = (x if order == "C" else x.T for x, order in zip((left, right), orders, strict=True))
    product, out = (placed(np.full((len(a), b.shape[1]), 7, a.dtype), 1 - start) for _ in range(2))
    sums = placed(np.full(b.shape[1], 7, a.dtype), start)
    _core.matmul(left, right, product)
    _core.dense(left, right, bias, "relu", 0.0, out)
    dweight = np.full_like(product, 7)
    _core.dense_gradients(left, placed(b, start), dweight, sums)
    results = {"matmul": product, "dense": out, "dweight": dweight, "dbias": sums}
    return results if grad is None else results | _sparse(a, b, bias, grad)


def _case(
    a: Array, b: Array, bias: Array, grad: Array | None, values: str, orders: str, start: int, quick: bool
) -> Case:
    options = {"a": a, "b": b, "orders": orders, "values": values, "start": start}
    return Case(
        f"matmul, {describe(options)}",
        options,
        partial(_by_reference, a, b, bias, grad),
        partial(_products, a, b, bias, orders, start, grad),
        0 if quick and max(len(a), b.shape[1]) < 100 else 1,
    )


def _listed_cases(dtype: Any, quick: bool) -> Iterator[Case]:
    rng = np.random.default_rng(11)
    special = partial(rng.choice, special_values(dtype))
    for i, (rows, depth, columns) in enumerate(LISTED):
        for j, kind in enumerate(("normal", "spread", "special")):
            make = spread if kind == "spread" else normal
            a, b, bias = (make(rng, shape, dtype) for shape in ((rows, depth), (depth, columns), (columns,)))
            if kind == "special":
                b = np.where(rng.random(b.shape) < 0.05, special(b.shape), b)
                a[rng.integers(rows), rng.integers(depth)] = rng.choice([np.nan, np.inf])  # of some share of the rows
            b[rng.random(b.shape) < (0.99, 0.85, 0.95)[i % 3]] = rng.choice([0.0, -0.0])
            b[:, rng.random(columns) < (0.1, 0.7, 1)[(i + j) % 3]] = 0
            a[rng.random(a.shape) < (0, 0.5)[i % 2]] = 0
            yield _case(a, b, bias, None, kind, ("CC", "FC")[(i + j) % 2], i % 2, quick)


def _matmul_cases(dtype: Any, quick: bool) -> Iterator[Case]:
    rng = np.random.default_rng(10)
    special = partial(rng.choice, special_values(dtype))
    kinds: dict[str, Callable[[tuple[int, ...]], Array]] = {
        "normal": lambda shape: normal(rng, shape, dtype),
        "spread": lambda shape: spread(rng, shape, dtype),
        "special": lambda shape: np.where(rng.random(shape) < 0.05, special(shape), normal(rng, shape, dtype)),
    }
    for i, (rows, depth, columns) in enumerate(SHAPES + SPARSE):
        for j, (kind, make) in enumerate(kinds.items()):
            a, b, bias = make((rows, depth)), make((depth, columns)), make((columns,))
            orders = ("CC", "CF", "FC", "FF")[(i + j) % 4]
            grad = None
            if i >= len(SHAPES):
                grad = None if kind == "special" else make((rows, columns))
                a[rng.random(a.shape) < (0.5, 0.75, 0.9, 0.99)[i % 4]] = rng.choice([0.0, -0.0])
                orders = ("CC", "FC")[(i + j) % 2]
            yield _case(a, b, bias, grad, kind, orders, i % 2, quick)


def _all_cases(dtype: Any, quick: bool) -> Iterator[Case]:
    yield from _matmul_cases(dtype, quick)
    yield from _listed_cases(dtype, quick)


CASES: dict[str, Callable[[Any, bool], Iterator[Case]]] = {"matmul": _all_cases}
