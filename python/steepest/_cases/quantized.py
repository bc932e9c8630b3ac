"""Cases of the integer arithmetic of quantised models: float32 in, or bytes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from steepest import _core, reference
from steepest._cases.case import Array, Case, Results
from steepest._cases.data import LARGE, SIZES, normal, placed, spread
from steepest._cases.layers import GEOMETRIES, layer_case

core: Any = _core  # geometries are unpacked
formulas: Any = reference
CODES: list[tuple[float, int]] = [(1.0, 0), (0.05, 128), (1e-4, 255), (1e30, 3)]  # scale and zero point


def _as_floats(**results: Any) -> Results:
    return {name: np.asarray(value, np.float64) for name, value in results.items()}


def _halves(n: int) -> Array:
    """Between two codes, where rounding to even decides, and next to it; and what falls off either end."""
    x = (np.arange(n) - n // 2) / np.float32(2)
    x = np.concatenate([x, np.nextafter(x, np.float32(np.inf)), np.nextafter(x, np.float32(-np.inf))])
    x[:2] = np.finfo(np.float32).max, -np.finfo(np.float32).max
    return np.asarray(x, np.float32)


def _vectors() -> Iterator[Array]:
    rng = np.random.default_rng(10)
    for make, n in itertools.product((normal, spread), (*SIZES, *LARGE)):
        yield make(rng, n, np.float32)
    yield _halves(1200)


def _quantize(x: Array, scale: float, zero_point: int, start: int) -> Results:
    x = placed(x, start)
    out = placed(np.zeros(x.shape, np.uint8), 1 - start)
    _core.quantize(x, scale, zero_point, out)
    return _as_floats(q=out)


def _quantize_cases(dtype: Any, quick: bool) -> Iterator[Case]:
    for i, ((scale, zero_point), x) in enumerate(itertools.product(CODES, _vectors())):

        def expected(x: Array = x, scale: float = scale, zero_point: int = zero_point) -> Results:
            return _as_floats(q=reference.quantize(x, scale, zero_point))

        options = {"x": x, "scale": scale, "zero_point": zero_point, "start": i % 2}
        units = 0 if quick and x.size < LARGE[0] else 1 + x.size // 9
        yield layer_case("quantize", options, units, expected, partial(_quantize, x, scale, zero_point, i % 2))


def _value_range_cases(dtype: Any, quick: bool) -> Iterator[Case]:
    for i, x in enumerate(_vectors()):

        def expected(x: Array = x) -> Results:
            return _as_floats(range=reference.value_range(x))

        def actual(x: Array = x, start: int = i % 2) -> Results:
            return _as_floats(range=_core.value_range(placed(x, start)))

        units = 0 if quick and x.size < LARGE[0] else 1 + x.size // 9
        yield layer_case("value_range", {"x": x, "start": i % 2}, units, expected, actual)


def _dense(batch: int, inputs: int) -> tuple[tuple[int, ...], dict[str, tuple[int, int]]]:
    return (batch, 1, 1, inputs), {"window": (1, 1), "stride": (1, 1), "pad": (0, 0), "out": (1, 1)}


def _product_shapes() -> Iterator[tuple[tuple[int, ...], dict[str, tuple[int, int]], int]]:
    """Every tail of a tile, a panel, a pair and a chunk, and convolutions of every geometry."""
    for batch, inputs, units in ((1, 1, 1), (2, 2, 16), (5, 3, 17), (7, 33, 31), (12, 16, 32), (25, 511, 10)):
        yield *_dense(batch, inputs), units
    for batch, inputs, units in ((24, 512, 3), (49, 513, 33), (13, 1025, 257), (216, 20, 5)):
        yield *_dense(batch, inputs), units
    for shape, geometry in GEOMETRIES:
        yield shape, geometry, 9
    yield (2, 9, 7, 33), {"window": (5, 4), "stride": (1, 1), "pad": (2, 1), "out": (9, 7)}, 20  # over a chunk


def _extreme(rng: np.random.Generator, shape: tuple[int, ...], units: int, window: tuple[int, int]) -> Any:
    """Bytes and weights at their ends: a product in 16 bits would saturate."""
    x, w = np.full(shape, 255, np.uint8), np.full((*window, shape[3], units), 127, np.int8)
    w[..., ::2] = -127
    return x, w


def _ordinary(rng: np.random.Generator, shape: tuple[int, ...], units: int, window: tuple[int, int]) -> Any:
    x = rng.integers(0, 256, shape, np.uint8)
    return x, rng.integers(-127, 128, (*window, shape[3], units), np.int8)


def _product(x: Array, geometry: Any, zero_point: int, w: Array, rest: Any, out: Any, start: int) -> Results:
    w = w.reshape(-1, w.shape[-1])
    packed = reference.packed(w)
    offsets = np.zeros(16 * len(packed), np.int32)
    offsets[: w.shape[1]] = -zero_point * w.sum(0, dtype=np.int32)
    rows = len(x) * geometry["out"][0] * geometry["out"][1]
    y = placed(np.zeros((rows, w.shape[1]), np.float32 if out is None else np.uint8), 1 - start)
    arrays = placed(packed, start), placed(offsets, start), *(placed(a, start) for a in rest[:2])
    code = () if out is None else out
    core.quantized_product(placed(x, start), *geometry.values(), zero_point, *arrays, rest[2], y, *code)
    return _as_floats(bytes=y) if out else {"y": y}


def _product_by_reference(x: Array, geometry: Any, zero_point: int, w: Array, rest: Any, out: Any) -> Results:
    y = formulas.quantized_product(x, *geometry.values(), zero_point, w, *rest, out)
    return _as_floats(bytes=y) if out else {"y": y}


def _product_cases(dtype: Any, quick: bool) -> Iterator[Case]:
    rng = np.random.default_rng(11)
    outs = None, (0.37, 7)
    for i, ((shape, geometry, units), make, out) in enumerate(
        itertools.product(_product_shapes(), (_ordinary, _extreme), outs)
    ):
        x, w = make(rng, shape, units, geometry["window"])
        zero_point = (0, 255, 130)[i % 3]
        scale, bias = (a.astype(np.float32) for a in (rng.uniform(0, 1e-3, units), rng.normal(size=units)))
        lowest = (0.0, -np.inf)[i // 2 % 2]

        rest = scale, bias, lowest
        expected = partial(_product_by_reference, x, geometry, zero_point, w, rest, out)
        options = {"x": x, **geometry, "weight": w, "kind": make.__name__, "zero_point": zero_point, "out": out}
        run = partial(_product, x, geometry, zero_point, w, rest, out, i % 2)
        yield layer_case("quantized_product", options, 1 if len(x) == 216 else 0, expected, run)


def _pool(x: Array, geometry: dict[str, tuple[int, int]], start: int) -> Results:
    pooled = placed(np.zeros((len(x), *geometry["out"], x.shape[3]), np.uint8), 1 - start)
    core.quantized_max_pool(placed(x, start), *geometry.values(), pooled)
    return _as_floats(pooled=pooled)


def _pool_cases(dtype: Any, quick: bool) -> Iterator[Case]:
    rng = np.random.default_rng(12)
    for (shape, geometry), largest, start in itertools.product(GEOMETRIES, (2, 256), (0, 1)):
        x = rng.integers(0, largest, shape, np.uint8)

        def expected(x: Array = x, geometry: Any = geometry) -> Results:
            return _as_floats(pooled=formulas.quantized_max_pool(x, *geometry.values()))

        options = {"x": x, **geometry, "below": largest, "start": start}
        units = 1 if len(x) >= 7 else 0
        yield layer_case("quantized_max_pool", options, units, expected, partial(_pool, x, geometry, start))


CASES: dict[str, Callable[[Any, bool], Iterator[Case]]] = {
    "value_range": _value_range_cases,
    "quantize": _quantize_cases,
    "quantized_product": _product_cases,
    "quantized_max_pool": _pool_cases,
}
