"""What `steepest train` says of its optimizer: that its steps are exact, and how fast they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest import _as_written, reference
from steepest.benchmarks import take_turns
from steepest.callbacks import Callback
from steepest.optim import Optimizer

Array = NDArray[Any]


class ProofError(Exception):
    """The kernels did not give what their formula gives."""


class Proof(Callback):
    """Repeats the first steps of a training with the reference, and compares after each of them."""

    def __init__(self, steps: int = 100) -> None:
        self.limit, self.steps, self.wrong = steps, 0, 0

    def on_train_begin(self, logs: dict[str, float]) -> None:
        """Copies the weights and the state that training starts from."""
        optimizer = self.trainer.optimizer
        self.formula = reference.RULES[type(optimizer).__name__]
        if state_dtype := optimizer._precision[0]:
            self.formula = partial(reference.low_precision, self.formula, state_dtype=state_dtype)
        self.weights = [group["params"].copy() for group in optimizer.param_groups]
        self.first = optimizer.steps
        self.states: list[dict[str, Any]] = list(optimizer.state_dict()["state"].values()) if self.first else []
        self.states = self.states or [{} for _ in self.weights]

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        """Repeats the step just made, whose gradients the model still holds."""
        if self.steps == self.limit or self.wrong:
            return
        groups, gradients = self.trainer.optimizer.param_groups, self.trainer.model.gradients()
        step = self.first + self.steps
        for i, (group, gradient) in enumerate(zip(groups, gradients, strict=True)):
            options = _options(group, step)
            self.weights[i], self.states[i] = self.formula(
                self.weights[i], gradient, self.states[i], step + 1, **options
            )
            bits = self.weights[i].view(np.uint32), group["params"].view(np.uint32)
            self.wrong += int(np.count_nonzero(np.not_equal(*bits)))
        self.steps += 1

    def result(self) -> str:
        """What was proved, in a line; `ProofError` if it was not."""
        weights = f"{sum(map(len, self.weights)):,} weights"
        if self.wrong:
            raise ProofError(f"proof: after step {self.steps}, {self.wrong:,} of {weights} differ from the reference's")
        if not self.steps:
            return "no step was made that could be repeated"
        return f"{self.steps} of its steps repeated with the NumPy reference: all {weights} identical, bit for bit"


def _options(group: Mapping[str, Any], step: int) -> dict[str, Any]:
    """A param group's options, its rate that of the step (from 0)."""
    options = {name: value for name, value in group.items() if name != "params"}
    lr = options["lr"]
    return options | {"lr": lr(step) if callable(lr) else lr}


def time_step(optimizer: Optimizer, gradients: Sequence[Array]) -> tuple[float, float]:
    """Microseconds per step of an optimizer, and of its formula as people write it in NumPy.

    The optimizer's groups hold an array each; both contenders start afresh on copies of those, at its
    first rate. Their answers are compared first; then they take turns, and the medians count.
    """
    options = [_options(group, 0) for group in optimizer.param_groups]
    ours, theirs = ([group["params"].copy() for group in optimizer.param_groups] for _ in range(2))
    make: Callable[..., Optimizer] = type(optimizer)
    state_dtype = optimizer._precision[0]
    groups = [{"params": p, **given} for p, given in zip(ours, options, strict=True)]
    fresh = make(groups, state_dtype=state_dtype)
    formula = _as_written.formula(type(optimizer).__name__)
    states: list[dict[str, Any]] = [{} for _ in theirs]
    steps = count(1)

    def numpy_step() -> None:
        t = next(steps)
        for p, g, state, given in zip(theirs, gradients, states, options, strict=True):
            l1 = given["l1"]
            formula(p, g + l1 * np.sign(p) if l1 else g, state, t, **given)

    calls: dict[str, Callable[[], None]] = {"ours": partial(fresh.step, gradients), "numpy": numpy_step}
    for call in calls.values():
        for _ in range(10):
            call()
    # A sign, of Lion or of an L1 penalty, may turn with a rounding; state of fewer bytes has other roundings.
    low = state_dtype not in (None, "float32")
    if not low and any(
        np.isclose(p, q, rtol=1e-4, atol=1e-6).mean() < 0.999 for p, q in zip(ours, theirs, strict=True)
    ):
        raise ProofError("speed: the optimizer's step and NumPy's formula differ")
    seconds = take_turns(calls, 0.3)
    return 1e6 * seconds["ours"], 1e6 * seconds["numpy"]
