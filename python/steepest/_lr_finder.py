"""The learning rate range test."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from steepest._history import axes
from steepest.callbacks import Callback, Logs

__all__ = ["LRFinder"]


class LRFinder(Callback):
    """A range test: the rate grows exponentially from batch to batch until the loss explodes.

    `lrs` and `losses` are what it saw, `suggestion` the rate at which the smoothed loss fell
    fastest. Model, optimizer and generators are put back at the end. `Trainer.find_lr` runs it.

    Smith, "Cyclical Learning Rates for Training Neural Networks", 2017; the suggestion is fastai's.
    """

    def __init__(self, start: float = 1e-7, end: float = 10.0, steps: int = 100) -> None:
        if not 0 < start < end < math.inf or steps < 2:
            raise ValueError(f"expected 0 < start < end and steps >= 2, got {start!r}, {end!r} and {steps!r}")
        self._rates = np.geomspace(start, end, steps).tolist()
        self.lrs: list[float] = []
        self.losses: list[float] = []
        self._smooth: list[float] = []

    def on_train_begin(self, logs: Logs) -> None:
        """Remembers the state of everything."""
        model, optimizer = self.trainer.model, self.trainer.optimizer
        self._params, self._random = model.params.copy(), model.random_state
        self._state = optimizer.state_dict()
        self._original_lrs = [group["lr"] for group in optimizer.param_groups]

    def on_train_batch_begin(self, batch: int, logs: Logs) -> None:
        """Sets the next rate."""
        self.trainer.optimizer.lr = self._rates[len(self.lrs)]

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Records the loss; stops when all rates are done or it is four times the best."""
        self.losses.append(logs["loss"])
        self.lrs.append(self._rates[len(self.lrs)])
        average = 0.0
        for loss in self.losses[-20:]:  # an exponential average; what is older weighs under 0.3%
            average += 0.25 * (loss - average)
        self._smooth.append(average / (1 - 0.75 ** min(len(self.losses), 20)))
        exploded = not self._smooth[-1] <= 4 * min(self._smooth)
        self.trainer.stop_training = exploded or len(self.lrs) == len(self._rates)

    def on_train_end(self, logs: Logs) -> None:
        """Puts everything back."""
        model, optimizer = self.trainer.model, self.trainer.optimizer
        np.copyto(model.params, self._params)
        model.random_state = self._random
        optimizer.load_state_dict(self._state)
        for group, lr in zip(optimizer.param_groups, self._original_lrs, strict=True):
            group["lr"] = lr

    @property
    def suggestion(self) -> float:
        """The rate of steepest descent; ValueError after fewer than three batches."""
        if len(self.lrs) < 3:
            raise ValueError(f"suggestion: expected at least 3 batches, got {len(self.lrs)}")
        end = max(3, int(np.nanargmin(self._smooth)) + 1)
        slope = np.gradient(self._smooth[:end], np.log(self.lrs[:end]))
        return self.lrs[int(np.nanargmin(slope))]

    def plot(self, ax: Any = None) -> Any:
        """Draws the loss over the rate and returns the matplotlib axes. Needs `steepest[plot]`."""
        ax = axes(ax)
        ax.semilogx(self.lrs, self._smooth)
        ax.axvline(self.suggestion, linestyle="--", label=f"suggestion {self.suggestion:.2g}")
        ax.set_xlabel("learning rate")
        ax.set_ylabel("loss (smoothed)")
        ax.legend()
        return ax
