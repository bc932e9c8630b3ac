"""Cases of what the layers compute besides matrix products."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from steepest import _core, reference
from steepest._cases.case import Array, Case, Expected, Options, Results, describe
from steepest._cases.data import LARGE, SIZES, normal, pairs, placed, special_values, spread

ACTIVATIONS = "identity", "relu", "leaky_relu", "tanh", "sigmoid"
ALPHA = 0.3


def layer_case(
    name: str, options: Options, units: int, expected: Callable[[], Results], actual: Callable[[], Results]
) -> Case:
    def by_reference() -> Expected:
        with np.errstate(all="ignore"):
            return Expected(expected())

    return Case(f"{name}, {describe(options)}", options, by_reference, actual, units)


def _vectors(dtype: Any) -> Iterator[Array]:
    """Of every size and kind; among them every special value with every other."""
    rng = np.random.default_rng(5)
    for make, n in itertools.product((normal, spread), (*SIZES, *LARGE)):
        yield make(rng, n, dtype)
    yield pairs(special_values(dtype))[0]


def _matrices(dtype: Any) -> Iterator[tuple[Array, Array | None]]:
    """Inputs of a layer and its biases, or none."""
    rng = np.random.default_rng(6)
    for shape in ((0, 5), (1, 1), (9, 1), (7, 10), (33, 17), (20, 128), (4, 0)):
        yield normal(rng, shape, dtype), normal(rng, shape[1], dtype)
        yield spread(rng, shape, dtype), None
    special = special_values(dtype)
    yield np.tile(special[:, None], (1, len(special))), special
    yield 10 * normal(rng, (2, 3, 5), dtype), normal(rng, 5, dtype)


def _activate(activation: str, x: Array, bias: Array | None, start: int) -> Results:
    x = placed(x, start)
    y = placed(x, 1 - start)
    bias = None if bias is None else placed(bias, start)
    _core.activate(activation, x, bias, ALPHA, y)
    _core.activate(activation, x, bias, ALPHA, x)
    return {"activation": y, "in place": x}


def _activate_cases(dtype: Any, quick: bool) -> Iterator[Case]:
    for activation, (i, (x, bias)) in itertools.product(ACTIVATIONS, enumerate(_matrices(dtype))):

        def expected(activation: str = activation, x: Array = x, bias: Array | None = bias) -> Results:
            y = reference.activate(activation, x, bias, ALPHA)
            return {"activation": y, "in place": y}

        options = {"activation": activation, "x": x, "bias": bias, "start": i // 2 % 2}
        units = 0 if quick and len(x) < 20 else 1
        yield layer_case("activate", options, units, expected, partial(_activate, activation, x, bias, i // 2 % 2))


def _mask(activation: str, gradient: Array, y: Array, start: int) -> Results:
    masked = placed(gradient, start)
    _core.mask(activation, masked, placed(y, 1 - start), ALPHA)
    return {"gradient": masked}


def _units(n: int, quick: bool) -> int:
    """Nine blocks; in a hurry only the large arrays are shared."""
    return 0 if quick and n < LARGE[0] else 1 + n // 9


def _mask_cases(dtype: Any, quick: bool) -> Iterator[Case]:
    special = special_values(dtype)
    for activation, (i, gradient) in itertools.product(ACTIVATIONS, enumerate(_vectors(dtype))):
        y = np.resize(special, gradient.shape)

        def expected(activation: str = activation, gradient: Array = gradient, y: Array = y) -> Results:
            return {"gradient": reference.mask(activation, gradient, y, ALPHA)}

        options = {"activation": activation, "grad": gradient, "start": i % 2}
        run = partial(_mask, activation, gradient, y, i % 2)
        yield layer_case("mask", options, _units(gradient.size, quick), expected, run)


def _dropout(x: Array, uniform: Array, rate: float, start: int) -> Results:
    x = placed(x, start)
    y = placed(x, 1 - start)
    uniform = placed(uniform, start)
    _core.dropout(x, uniform, rate, y)
    _core.dropout(x, uniform, rate, x)
    return {"y": y, "in place": x}


def _dropout_cases(dtype: Any, quick: bool) -> Iterator[Case]:
    rng = np.random.default_rng(7)
    for i, (rate, x) in enumerate(itertools.product((0.0, 0.3), _vectors(dtype))):
        uniform = rng.random(x.shape).astype(dtype)

        def expected(x: Array = x, uniform: Array = uniform, rate: float = rate) -> Results:
            y = reference.dropout(x, uniform, rate)
            return {"y": y, "in place": y}

        options = {"x": x, "rate": rate, "start": i % 2}
        run = partial(_dropout, x, uniform, rate, i % 2)
        yield layer_case("dropout", options, _units(x.size, quick), expected, run)


# ---------------------------------------------------------------------------------------------
# Windows that slide over images

GEOMETRIES: list[tuple[tuple[int, ...], dict[str, tuple[int, int]]]] = [
    # (batch, height, width, channels); the window, its stride, the padding before, the outputs
    ((0, 3, 3, 1), {"window": (2, 2), "stride": (1, 1), "pad": (0, 0), "out": (2, 2)}),
    ((9, 1, 1, 1), {"window": (1, 1), "stride": (1, 1), "pad": (0, 0), "out": (1, 1)}),
    ((2, 5, 4, 3), {"window": (2, 3), "stride": (1, 1), "pad": (0, 0), "out": (4, 2)}),
    ((2, 5, 4, 3), {"window": (3, 3), "stride": (1, 1), "pad": (1, 1), "out": (5, 4)}),
    ((8, 7, 9, 5), {"window": (2, 2), "stride": (2, 2), "pad": (0, 0), "out": (3, 4)}),
    ((3, 7, 9, 17), {"window": (3, 2), "stride": (2, 3), "pad": (1, 0), "out": (4, 3)}),
    ((7, 6, 6, 1), {"window": (4, 4), "stride": (1, 2), "pad": (2, 1), "out": (6, 3)}),
    ((2, 4, 4, 8), {"window": (2, 2), "stride": (3, 3), "pad": (1, 1), "out": (2, 2)}),
]


def _images(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, kind: str) -> Array:
    if kind == "special":
        return rng.choice(special_values(dtype), shape)
    if kind == "ties":
        return rng.integers(-1, 2, shape).astype(dtype)
    return normal(rng, shape, dtype)


def _sources(geometry: dict[str, Any], shape: tuple[int, ...], dtype: Any) -> Array:
    ties = _images(np.random.default_rng(8), shape, dtype, "ties")
    return reference.max_pool(ties, **geometry)[1]


def _other_shape(name: str, shape: tuple[int, ...], geometry: dict[str, Any]) -> tuple[int, ...]:
    rows, columns = geometry["out"]
    if name in ("im2col", "col2im"):
        i, j = geometry["window"]
        return shape[0] * rows * columns, i * j * shape[3]
    return shape[0], rows, columns, shape[3]


def _slide_by_reference(name: str, x: Array, shape: tuple[int, ...], geometry: dict[str, Any]) -> Results:
    if name == "max_pool":
        pooled, sources = reference.max_pool(x, **geometry)
        return {"pooled": pooled, "sources": sources.astype(float)}
    if name == "max_pool_backward":
        return {"images": reference.max_pool_backward(x, _sources(geometry, shape, x.dtype), shape)}
    formula = getattr(reference, name)
    if name in ("im2col", "avg_pool"):
        return {name: formula(x, **geometry)}
    return {name: formula(x, shape, **geometry)}


def _slide(name: str, x: Array, shape: tuple[int, ...], geometry: dict[str, Any], start: int) -> Results:
    other = _other_shape(name, shape, geometry)
    if name in ("max_pool", "max_pool_backward"):
        forward = name == "max_pool"
        to = placed(np.full(other if forward else shape, 7, x.dtype), 1 - start)
        images, pooled = (placed(x, start), to) if forward else (to, placed(x, start))
        sources = np.zeros(other, np.int32) if forward else _sources(geometry, shape, x.dtype)
        _core.max_pool(images, pooled=pooled, sources=sources, forward=forward, **geometry)
        return {"pooled": pooled, "sources": sources.astype(float)} if forward else {"images": images}
    forward = name in ("im2col", "avg_pool")
    to = placed(np.full(other if forward else shape, 7, x.dtype), 1 - start)
    images, rest = (placed(x, start), to) if forward else (to, placed(x, start))
    getattr(_core, name)(images, *geometry.values(), rest)
    return {name: to}


def _window_cases(name: str, dtype: Any, quick: bool) -> Iterator[Case]:
    rng = np.random.default_rng(9)
    forward = name in ("im2col", "avg_pool", "max_pool")
    for (shape, geometry), kind, start in itertools.product(GEOMETRIES, ("ordinary", "ties", "special"), (0, 1)):
        x = _images(rng, shape if forward else _other_shape(name, shape, geometry), dtype, kind)
        yield layer_case(
            name,
            {"images": shape, "values": kind, **geometry, "start": start},
            0 if quick and shape[0] < 7 else 1,
            partial(_slide_by_reference, name, x, shape, geometry),
            partial(_slide, name, x, shape, geometry, start),
        )


CASES: dict[str, Callable[[Any, bool], Iterator[Case]]] = {
    "activate": _activate_cases,
    "mask": _mask_cases,
    "dropout": _dropout_cases,
}
CASES |= {
    name: partial(_window_cases, name)
    for name in ("im2col", "col2im", "max_pool", "max_pool_backward", "avg_pool", "avg_pool_backward")
}
