"""Cases of the update rules: every variant, with every penalty, with everything that is fused before it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import Any

import numpy as np

from steepest import optim, reference
from steepest._cases.case import Array, Case, Expected, Options, Results, describe
from steepest._cases.data import LARGE, LINE, SIZES, normal, pairs, placed, special_values, spread

STEPS = 3
SKIPPED = (0,)  # steps in which the tensors that lag have no gradient
ELEMENTS_PER_BLOCK = 1001
SPECIAL = -1  # the size of a tensor in which special values meet

PENALTIES: list[Options] = [{}, {"l1": 0.01}, {"l2": 0.02}, {"l1": 0.01, "l2": 0.02}]
FUSED: list[Options] = [
    {},
    {"max_value": 0.5},
    {"maximize": True, "grad_scale": 0.75},
    {"max_norm": 1e3},
    {"max_value": 0.5, "maximize": True, "grad_scale": 1 / 3, "max_norm": 1e3},
]


def product(**choices: Sequence[Any]) -> list[Options]:
    """Every combination of the choices; a choice of None leaves the option out."""
    combinations = itertools.product(*choices.values())
    return [
        {name: value for name, value in zip(choices, values, strict=True) if value is not None}
        for values in combinations
    ]


VARIANTS: dict[str, list[Options]] = {
    "SGD": [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.3},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "lr_in_velocity": True},
        {"momentum": 0.9, "lr_in_velocity": True, "nesterov": True},
    ],
    "Momentum": [{}, {"beta": 0.3}],
    "RMSprop": [
        {"alpha": 0.95, "eps": 1e-6},
        *product(centered=(None, True), momentum=(None, 0.9), eps_inside_sqrt=(None, True)),
    ],
    "Adagrad": [
        {},
        {"eps": 1e-6},
        {"eps_inside_sqrt": True},
        {"lr_decay": 0.1, "initial_accumulator_value": 0.1},
        {"lr_decay": 0.1, "initial_accumulator_value": 0.1, "eps_inside_sqrt": True},
    ],
    "Adam": [{"betas": (0.8, 0.9), "eps": 1e-6}, *product(amsgrad=(None, True), epsilon_hat=(None, True))],
    "AdamW": [
        {"betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.3},
        {"weight_decay": 0.0},
        *product(amsgrad=(None, True), epsilon_hat=(None, True)),
    ],
    "NAdam": [
        {},
        {"betas": (0.8, 0.9), "eps": 1e-6, "momentum_decay": 0.1},
        {"weight_decay": 0.3},
        {"weight_decay": 0.3, "decoupled_weight_decay": True},
    ],
    "Lion": [{}, {"betas": (0.8, 0.9), "weight_decay": 0.3}],
}


def rate(step: int) -> float:
    """The learning rate, which changes: some variants differ only then."""
    return 0.01 * (1 - step / 8)


class Tensors:
    """Parameters of every size, aligned to 64 bytes and one element off, in one buffer; their gradients and masks.

    Between the tensors lie elements that nobody may touch. Without `nonfinite` no gradient is huge.
    """

    def __init__(self, dtype: Any, nonfinite: bool, quick: bool) -> None:
        rng = np.random.default_rng(0)
        special = special_values(dtype)
        if not nonfinite:
            special = special[np.abs(special) < np.finfo(dtype).max]
        special_p, special_g = pairs(special)
        step = LINE // np.dtype(dtype).itemsize
        self.slices: list[slice] = []
        values: list[list[Array]] = []
        end = 0
        sizes = list(itertools.product(SIZES, (0, 1)))[:: 3 if quick else 1]
        for n, start in (*sizes, *zip(LARGE, (0, 1) * 2, strict=True), (SPECIAL, 0), (SPECIAL, 1)):
            make = (normal, spread)[len(values) // 3 % 2]
            if n == SPECIAL:
                values.append([special_p, *(np.roll(special_g, k) for k in range(STEPS))])
            else:
                values.append([make(rng, n, dtype) for _ in range(1 + STEPS)])
            begin = -(-end // step) * step + start
            end = begin + len(values[-1][0])
            self.slices.append(slice(begin, end))
        arrays = [np.full(end + step, 7, dtype) for _ in range(1 + STEPS)]
        for s, value in zip(self.slices, values, strict=True):
            for array, x in zip(arrays, value, strict=True):
                array[s] = x
        self.params, *self._gradients = arrays
        self.lags = [i % 3 == 2 for i in range(len(self.slices))]
        every = np.arange(end + step)
        self.elements, self.lagging, self.others = (
            np.concatenate([every[s] for s, lag in zip(self.slices, self.lags, strict=True) if lag in which])
            for which in ((True, False), (True,), (False,))
        )
        self.norm = cache(self._norm)
        self.mask = rng.random(end + step) < 0.5
        self.unmasked = [i % 4 == 3 for i in range(len(self.slices))]
        for s, unmasked in zip(self.slices, self.unmasked, strict=True):
            self.mask[s] |= unmasked

    def masks(self) -> list[Array | None]:
        """As `Optimizer.set_masks` takes them."""
        parts = zip(self.slices, self.unmasked, strict=True)
        return [None if unmasked else self.mask[s] for s, unmasked in parts]

    def gradient(self, step: int) -> Array:
        return self._gradients[step]

    def gradients(self, step: int) -> list[Array | None]:
        """As `Optimizer.step` takes them; None for the tensors that lag."""
        g = self._gradients[step]
        return [None if lag and step in SKIPPED else g[s] for s, lag in zip(self.slices, self.lags, strict=True)]

    def _norm(self, step: int, masked: bool) -> float:
        parts = zip(self.gradients(step), self.slices, strict=True)
        kept = [(g, self.mask[s] | (not masked)) for g, s in parts if g is not None]
        return reference.global_norm([np.where(mask, g, g.dtype.type(0)) for g, mask in kept])


def _by_reference(rule: str, options: Options, data: Tensors) -> Expected:
    formula = reference.RULES[rule]
    given = dict(options)
    grad_scale, max_norm = given.pop("grad_scale", 1.0), given.pop("max_norm", None)
    mask = data.mask if given.pop("masked", False) else None
    p = data.params.copy()
    steps, states = {False: 0, True: 0}, {False: dict[str, Any](), True: dict[str, Any]()}
    values: Results = {}
    with np.errstate(all="ignore"):
        for k in range(STEPS):
            norm = 0.0 if max_norm is None else abs(grad_scale) * data.norm(k, mask is not None)
            scale = grad_scale * reference.clip_factor(norm, max_norm)
            for lag, at in ((False, data.others), (True, data.lagging)):
                if lag and k in SKIPPED:
                    continue
                steps[lag] += 1
                step = formula if mask is None else partial(reference.masked, formula, mask=mask[at])
                p[at], states[lag] = step(
                    p[at], data.gradient(k)[at], states[lag], steps[lag], lr=rate(k), scale=scale, **given
                )
            values[f"params after step {k + 1}"] = p.copy()
            if max_norm is not None:
                values[f"norm of step {k + 1}"] = np.array([norm])
    whole = np.zeros_like(p)
    for name in states[False]:
        if name == "mu_product":
            values[name] = np.array([states[lag][name] for lag in data.lags])
        else:
            whole[data.others], whole[data.lagging] = states[False][name], states[True][name]
            values[name] = whole[data.elements]
    values["step"] = np.array([float(steps[lag]) for lag in data.lags])
    return Expected(values)


def _by_kernel(rule: str, options: Options, data: Tensors) -> Results:
    given = dict(options)
    grad_scale, masked = given.pop("grad_scale", 1.0), given.pop("masked", False)
    memory = placed(data.params, 0)
    params = [memory[s] for s in data.slices]
    optimizer = getattr(optim, rule)(params, lr=rate, **given)
    optimizer.set_masks(data.masks() if masked else None)
    values: Results = {}
    for k in range(STEPS):
        optimizer.step(data.gradients(k), grad_scale)
        values[f"params after step {k + 1}"] = memory.copy()
        if "max_norm" in given:
            values[f"norm of step {k + 1}"] = np.array([optimizer.last_norm])
    state = list(optimizer.state_dict()["state"].values())
    for name in state[0]:
        if name == "mask":
            continue
        value = [tensor[name] for tensor in state]
        values[name] = np.concatenate(value) if isinstance(value[0], np.ndarray) else np.array(value, float)
    return values


def options_of(rule: str, quick: bool = False) -> Iterator[Options]:
    """Every variant of the rule, with every penalty, with everything else that is fused; in a hurry, with all of it.

    With masks, alone and with all of it.
    """
    everything = PENALTIES[-1], FUSED[-1]
    for i, variant in enumerate(VARIANTS[rule]):
        for penalty, fused in itertools.product(PENALTIES, FUSED):
            if quick and (penalty, fused) != everything and (penalty or fused or i > 0):
                continue
            options = variant | (penalty if rule in HAS_L2 else as_weight_decay(penalty)) | fused
            yield options
            if (penalty, fused) in (({}, {}), everything):
                yield options | {"masked": True}


HAS_L2 = "AdamW", "NAdam", "Lion"  # beside weight_decay


def as_weight_decay(penalty: Options) -> Options:
    return {"weight_decay" if name == "l2" else name: value for name, value in penalty.items()}


def cases(rule: str, dtype: Any, quick: bool) -> Iterator[Case]:
    data = {nonfinite: Tensors(dtype, nonfinite, quick) for nonfinite in (True, False)}
    for options in options_of(rule, quick):
        given = rule, options, data["max_norm" not in options]
        run = partial(_by_kernel, *given)
        yield Case(describe(options), options, partial(_by_reference, *given), run, ELEMENTS_PER_BLOCK)
