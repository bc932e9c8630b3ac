"""Cases of the losses: their options, with data of every size and kind."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import Any

import numpy as np

from steepest import losses, reference
from steepest._cases.case import Array, Case, Expected, Options, Results, Sum, describe
from steepest._cases.data import LARGE, SIZES, normal, pairs, placed, special_values, spread

ELEMENTWISE: dict[str, list[Options]] = {
    "mse": [{}],
    "mae": [{}],
    "huber": [{}, {"delta": 0.25}],
    "binary_cross_entropy": [{}],
}
SOFTMAX = "softmax_cross_entropy", "kl_divergence"
OUT = "none", "own", "input"  # where the gradient goes
REDUCTIONS = "mean", "sum"
IN_BLOCKS = 2049  # elements, from which several threads take part


def _total(terms: Array, weight: float, reduction: str) -> dict[str, Sum]:
    """The exact sum (or mean) of the terms; nothing if they are not finite or their sum is not."""
    try:
        exact, magnitude = math.fsum(terms), math.fsum(np.abs(terms))
    except (OverflowError, ValueError):
        return {}
    if not math.isfinite(magnitude):
        return {}
    if reduction == "mean":
        exact, magnitude = (x / weight if weight > 0 else 0.0 for x in (exact, magnitude))
    return {"loss": Sum(exact, math.ulp(magnitude))}


def _by_reference(name: str, x: Array, y: Array, options: Options) -> Expected:
    with np.errstate(all="ignore"):
        loss, gradient, terms = getattr(reference, name)(x, y, **options)
    weights = np.ones(terms.size)
    if (given := options.get("sample_weight")) is not None:
        weights = np.repeat(given.ravel().astype(float), terms.size // max(given.size, 1))
    if (ignored := options.get("ignore_index")) is not None:
        weights = np.where(y.ravel() == ignored, 0, weights)
    total = _total(terms.ravel(), math.fsum(weights), options["reduction"])
    return Expected({"loss": np.array([loss]), "gradient": gradient}, total)


def _by_kernel(name: str, x: Array, y: Array, options: Options, start: int, out: str) -> Results:
    logits = placed(x, start)
    given = dict(options)
    if out != "none":
        given["out"] = logits if out == "input" else placed(x, 1 - start)
    loss, gradient = getattr(losses, name)(logits, placed(y, start), **given)
    if out != "none" and gradient is not given["out"]:
        return {"another array than out": gradient}
    return {"loss": np.array([loss]), "gradient": gradient}


def _cases(name: str, x: Array, y: Array, options: Options, outs: Sequence[str], units: int) -> Iterator[Case]:
    expected = cache(partial(_by_reference, name, x, y, options))
    shown = describe({"prediction": x, "target": y, **options})
    for start, out in zip(itertools.cycle((0, 1)), outs, strict=False):
        run = partial(_by_kernel, name, x, y, options, start, out)
        yield Case(f"{shown}, out={out}, start={start}", {**options, "out": out}, expected, run, units)


def _weights(rng: np.random.Generator, shape: Any, dtype: Any) -> Array:
    """Weights, one in ten of them zero."""
    return np.abs(normal(rng, shape, dtype))


def _targets(name: str, rng: np.random.Generator, shape: Any, dtype: Any) -> Array:
    if name == "binary_cross_entropy":
        return np.asarray(np.clip(3 * rng.random(shape) - 1, 0, 1)).astype(dtype)
    return normal(rng, shape, dtype)


def _elementwise_data(name: str, dtype: Any) -> Iterator[tuple[Array, Array, Array | None]]:
    """Predictions, targets, and no weights, weights for each element, or for each row."""
    rng = np.random.default_rng(1)
    shapes = [(n,) for n in (*SIZES, *LARGE, 14_337)]
    for shape in (*shapes, (), (3, 0), (1, 1), (33, 7), (500, 29), (5, 4, 3)):
        for make, axes in itertools.product((normal, spread), range(len(shape) + 1)):
            x, y = make(rng, shape, dtype), _targets(name, rng, shape, dtype)
            if axes == len(shape):
                yield x, y, None
            if axes:
                yield x, y, _weights(rng, shape[:axes], dtype)
    x, y = pairs(special_values(dtype))
    if name == "binary_cross_entropy":
        y = np.resize(np.array([0, 1, 0.5, np.finfo(dtype).tiny, math.nan], dtype), x.shape)
    yield x, y, None
    yield x, y, _weights(rng, x.shape, dtype)


def elementwise_cases(name: str, dtype: Any, quick: bool) -> Iterator[Case]:
    turns = itertools.cycle(OUT)
    for i, (x, y, weight) in enumerate(_elementwise_data(name, dtype)):
        in_blocks = x.size >= IN_BLOCKS
        if quick and in_blocks and i % 3:
            continue
        reductions = REDUCTIONS[i // 3 % 2 :][:1] if quick else REDUCTIONS
        for reduction in reductions:
            options: Options = {"reduction": reduction, **ELEMENTWISE[name][i // 3 % len(ELEMENTWISE[name])]}
            if weight is not None:
                options["sample_weight"] = weight
            outs = [next(turns)] if quick else OUT if in_blocks else [next(turns), next(turns)]
            yield from _cases(name, x, y, options, outs, int(in_blocks or not quick))


SHAPES = (
    *((0, 3), (1, 1), (5, 1), (7, 2), (33, 3), (1, 9), (2, 3, 4), (1500, 10), (200, 73), (25, 15), (25, 16), (25, 17)),
    *((3, 31), (3, 32), (3, 33), (15, 1000), (8, 2047), (8, 2048), (8, 2049), (7, 4999)),
)
QUICK_SHAPES = (0, 3), (1, 1), (33, 3), (2, 3, 4), (200, 73), (25, 17), (3, 33), (20, 2049)


def _logits(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    """Rows of every kind: ordinary, wide, confident, with masked classes."""
    x = 3 * normal(rng, shape, dtype).reshape(-1, shape[-1])
    x[1::5] = spread(rng, x[1::5].shape, dtype)
    x[2::5, 0] += 40
    x[3::5, 1:][rng.random(x[3::5, 1:].shape) < 0.3] = -np.inf
    return x.reshape(shape)


def _special_logits(dtype: Any) -> Array:
    """Rows in which a special value meets another, in seven classes."""
    a, b = pairs(special_values(dtype))
    one, zero = np.ones_like(a), np.zeros_like(a)
    rows = np.stack([a, b, one, -one, zero, b, a], axis=1)
    rows[::2] = np.roll(rows[::2], 3, axis=1)
    rows[-1] = -np.inf
    return rows


def _labels(rng: np.random.Generator, rows: tuple[int, ...], classes: int) -> Iterator[tuple[Array, Options]]:
    """Class numbers of every integer type, and some that are ignored."""
    labels = rng.integers(0, classes, rows)
    for dtype in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64):
        if classes <= np.iinfo(dtype).max:
            yield labels.astype(dtype), {}
    yield labels, {"ignore_index": classes // 2}
    yield np.where(rng.random(rows) < 0.2, -100, labels).astype(np.int16), {"ignore_index": -100}


def _softmax_data(
    name: str, dtype: Any, quick: bool
) -> Iterator[tuple[Array, list[tuple[Array, Options]], list[Options]]]:
    """Logits, labels and probabilities with the options that they need, other options."""
    rng = np.random.default_rng(2)
    shapes = QUICK_SHAPES if quick else SHAPES
    for x in (*(_logits(rng, shape, dtype) for shape in shapes), _special_logits(dtype)):
        *rows, classes = x.shape
        probabilities = rng.random(x.shape) * (rng.random(x.shape) > 0.3)
        probabilities /= np.maximum(probabilities.sum(-1, keepdims=True), 1e-3)
        labels = [] if name == "kl_divergence" else list(_labels(rng, tuple(rows), classes))
        weighted: Options = {"sample_weight": _weights(rng, rows, dtype)}
        others: list[Options] = [{}, weighted]
        if name != "kl_divergence":
            others += [{"label_smoothing": 0.1}, {"label_smoothing": 0.1, **weighted}]
        yield x, [(probabilities.astype(dtype), {}), *labels[-2:], *labels[:-2]], others


def softmax_cases(name: str, dtype: Any, quick: bool) -> Iterator[Case]:
    turns = itertools.cycle(OUT)
    for x, targets, others in _softmax_data(name, dtype, quick):
        units = int(x.size >= IN_BLOCKS or not quick)
        for more, reduction in itertools.product(others, REDUCTIONS):
            if quick and bool(more) != (reduction == "sum"):
                continue
            for y, needed in targets if not more and len(x) == 33 else targets[:4]:
                options = {**needed, **more, "reduction": reduction}
                yield from _cases(name, x, y, options, [next(turns)], units)


DISTILLATION: list[Options] = [
    {},
    {"alpha": 0.9, "temperature": 4.0},
    {"alpha": 0.0},
    {"alpha": 1.0, "temperature": 0.5},
]


def _distillation_by_kernel(x: Array, t: Array, y: Array, options: Options, start: int, out: bool) -> Results:
    given = {**options, "out": placed(x, 1 - start)} if out else options
    loss, gradient = losses.distillation(placed(x, start), placed(t, 1 - start), y, **given)
    return {"loss": np.array([loss]), "gradient": gradient}


def _distillation_by_reference(x: Array, t: Array, y: Array, options: Options) -> Expected:
    loss, gradient, terms = reference.distillation(x, t, y, **options)
    weights = options.get("sample_weight", np.ones(terms.size))
    total = _total(terms, math.fsum(weights.ravel().astype(float)), options["reduction"])
    return Expected({"loss": np.array([loss]), "gradient": gradient}, total)


def distillation_cases(dtype: Any, quick: bool) -> Iterator[Case]:
    rng = np.random.default_rng(5)
    shapes = QUICK_SHAPES if quick else SHAPES
    for i, x in enumerate((*(_logits(rng, shape, dtype) for shape in shapes), _special_logits(dtype))):
        *rows, classes = x.shape
        t = np.roll(_logits(rng, x.shape, dtype), 2, axis=0)
        y = rng.integers(0, classes, rows)
        for k, (options, reduction) in enumerate(itertools.product(DISTILLATION, REDUCTIONS)):
            if quick and k % 4 != i % 4:
                continue
            given: Options = {**options, "reduction": reduction}
            if k % 3 == 0:
                given["sample_weight"] = _weights(rng, rows, dtype)
            run = partial(_distillation_by_kernel, x, t, y, given, k % 2, k % 2 == 0)
            expected = cache(partial(_distillation_by_reference, x, t, y, given))
            shown = describe({"logits": x, **given})
            yield Case(shown, given, expected, run, int(x.size >= IN_BLOCKS or not quick))
