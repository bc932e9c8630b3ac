"""Cases of rules whose state, or whose parameters, take fewer bytes than float32."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from steepest import _core, optim, reference
from steepest._cases.case import Case, Expected, Options, Results, describe
from steepest._cases.data import normal, special_values, spread
from steepest._cases.optimizers import FUSED, HAS_L2, PENALTIES, SKIPPED, STEPS, VARIANTS, as_weight_decay, rate
from steepest.reference.codecs import GROUP, SMALLEST

ELEMENTS_PER_BLOCK = 1001  # not a multiple of a group
SIZES = 0, 33, SMALLEST - 1, SMALLEST, SMALLEST + 1, 5 * 1001, 20 * GROUP - 1
HALF = "bfloat16 parameters"  # an option of cases

STORAGE: list[Options] = [
    {"state_dtype": "bfloat16"},
    {"state_dtype": "8bit", "seed": 2**32 - 1},
    {"state_dtype": "8bit", "seed": None},
    {HALF: True},
    {HALF: True, "state_dtype": "8bit", "master_weights": "float32"},
    {HALF: True, "state_dtype": "float32", "seed": None},
    {HALF: True, "state_dtype": "bfloat16", "seed": None, "master_weights": "float32"},
]


def options_of(rule: str, quick: bool) -> Iterator[Options]:
    """Every variant with every storage, and everything that is fused before in one of them."""
    for i, variant in enumerate(VARIANTS[rule][:: -1 if rule != "RMSprop" else 1]):
        if variant.get("centered") or (rule == "SGD" and "momentum" not in variant) or (quick and i > 0):
            continue
        for j, storage in enumerate(STORAGE):
            fused = PENALTIES[-1] | FUSED[-1] if (i + j) % 3 == 0 else {"masked": True} if (i + j) % 3 == 1 else {}
            yield variant | (fused if rule in HAS_L2 else as_weight_decay(fused)) | storage


def _arrays(half: bool, finite: bool) -> tuple[list[Any], list[list[Any]]]:
    """Parameters and their gradients for each step, some of which are not finite."""
    rng = np.random.default_rng(1)
    special = special_values(np.float32)
    params, gradients = [], []
    for i, n in enumerate(SIZES):
        make = (normal, spread)[i % 2]
        arrays = [make(rng, n, np.float32) for _ in range(1 + STEPS)]
        if i % 3 == 0 and n > 0 and not finite:
            for x in arrays[1:]:
                x[rng.integers(n, size=2 * special.size)] = np.tile(special, 2)
        if half:
            arrays = [reference.to_bfloat16(x) for x in arrays]
        params.append(arrays[0])
        gradients.append(arrays[1:])
    return params, gradients


def _given(options: Options) -> tuple[bool, Options, list[Any], list[list[Any]], list[Any]]:
    """Whether bfloat16, the other options, and for each tensor parameters, gradients and a mask or None."""
    given = dict(options)
    half = given.pop(HALF, False)
    rng = np.random.default_rng(2)
    masks = [rng.random(n) < 0.7 for n in SIZES] if given.pop("masked", False) else [None] * len(SIZES)
    return half, given, *_arrays(half, "max_norm" in given), masks


def _by_reference(rule: str, options: Options) -> Expected:
    half, given, params, gradients, masks = _given(options)
    grad_scale, max_norm = given.pop("grad_scale", 1.0), given.pop("max_norm", None)
    state_dtype, master = given.pop("state_dtype", "bfloat16"), given.pop("master_weights", "split")
    states: list[Options] = [{} for _ in SIZES]
    if half:
        name, dtype = ("master_weights", "f4") if master == "float32" else ("weight_correction", "i2")
        states = [{name: np.zeros(n, dtype)} for n in SIZES]
    steps = [0] * len(SIZES)
    values: Results = {}
    with np.errstate(all="ignore"):
        for k in range(STEPS):
            taken = [i for i in range(len(SIZES)) if not (i % 3 == 2 and k in SKIPPED)]
            wide = [reference.from_bfloat16(gradients[i][k]) if half else gradients[i][k] for i in taken]
            norm = 0.0 if max_norm is None else abs(grad_scale) * reference.global_norm(wide)
            scale = grad_scale * reference.clip_factor(norm, max_norm)
            for i in taken:
                steps[i] += 1
                formula, more = reference.RULES[rule], {}
                if masks[i] is not None:
                    formula, more = partial(reference.masked, formula), {"mask": masks[i]}
                params[i], states[i] = reference.low_precision(
                    formula, params[i], gradients[i][k], states[i], steps[i],
                    state_dtype=state_dtype, lr=rate(k), scale=scale, **given, **more,
                )  # fmt: skip
    for i, state in enumerate(states):
        values[f"params[{i}]"] = params[i]
        for name, value in state.items():
            values[f"{name} of params[{i}]"] = np.atleast_1d(value)
    return Expected(values)


def _by_kernel(rule: str, options: Options) -> Results:
    half, given, params, gradients, masks = _given(options)
    if half:
        params = [p.view(_core._bfloat16_bits) for p in params]
        gradients = [[g.view(_core._bfloat16_bits) for g in each] for each in gradients]
    grad_scale = given.pop("grad_scale", 1.0)
    optimizer = getattr(optim, rule)(params, lr=rate, **given)
    optimizer.set_masks(masks)
    for k in range(STEPS):
        lag = k in SKIPPED
        optimizer.step([None if lag and i % 3 == 2 else g[k] for i, g in enumerate(gradients)], grad_scale)
    values: Results = {}
    for i, state in optimizer.state_dict()["state"].items():
        values[f"params[{i}]"] = params[i].view(np.uint16) if half else params[i]
        for name, value in state.items():
            if name not in ("step", "mask"):
                values[f"{name} of params[{i}]"] = np.atleast_1d(value)
    return values


def cases(rule: str, quick: bool) -> Iterator[Case]:
    for options in options_of(rule, quick):
        given = rule, options
        run = partial(_by_kernel, *given)
        yield Case(describe(options), options, partial(_by_reference, *given), run, ELEMENTS_PER_BLOCK)
