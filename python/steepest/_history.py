"""What training recorded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["History", "axes"]


class History:
    """What training recorded: `history` has a list per quantity, `epoch` the epochs' numbers.

    `interrupted` tells whether Ctrl-C ended the training.
    """

    def __init__(self) -> None:
        self.epoch: list[int] = []
        self.history: dict[str, list[float]] = {}
        self.interrupted = False

    def append(self, epoch: int, logs: Mapping[str, float]) -> None:
        """Adds an epoch; a quantity that an epoch lacks is NaN there."""
        for name in (*self.history, *logs):
            column = self.history.setdefault(name, [math.nan] * len(self.epoch))
            if len(column) == len(self.epoch):
                column.append(float(logs.get(name, math.nan)))
        self.epoch.append(epoch)

    def before(self, epoch: int) -> History:
        """A copy of the epochs with a smaller number."""
        earlier = History()
        for i, number in enumerate(self.epoch):
            if number < epoch:
                earlier.append(number, {name: column[i] for name, column in self.history.items()})
        return earlier

    def plot(self, names: str | Iterable[str] | None = None, ax: Any = None) -> Any:
        """Draws the quantities over the epochs and returns the matplotlib axes.

        `names`: one or several; None is every loss. `ax` None: axes of a new figure. Needs `steepest[plot]`.
        """
        ax = axes(ax)
        if isinstance(names, str):
            names = [names]
        for name in names or [n for n in self.history if n.endswith("loss")]:
            ax.plot([number + 1 for number in self.epoch], self.history[name], label=name)
        ax.set_xlabel("epoch")
        ax.legend()
        return ax

    def __repr__(self) -> str:
        return f"History(epochs={len(self.epoch)}, quantities={list(self.history)})"


def axes(ax: Any) -> Any:
    """The matplotlib axes given, or those of a new figure."""
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "steepest[plot]"') from error
    return pyplot.subplots()[1]
