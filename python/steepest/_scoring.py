"""Metrics over many batches: outputs are collected, then scored together."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from steepest import losses
from steepest.nn.layer import Array

__all__ = ["Link", "Metric", "Scorer", "link_of", "named", "on_probabilities"]

Metric = Callable[[Array, Array], Any]
Link = Literal["softmax", "sigmoid"] | None
CAPACITY = 1 << 16  # output values kept before they become what metrics read


def _function(f: Any) -> Any:
    while hasattr(f, "func"):  # functools.partial
        f = f.func
    return f


def link_of(loss: Any) -> Link:
    """How the loss reads the model's outputs."""
    links: dict[Any, Link] = {
        losses.softmax_cross_entropy: "softmax",
        losses.binary_cross_entropy: "sigmoid",
    }
    return links.get(_function(loss))


def _name(metric: Any) -> str:
    function = _function(metric)
    return str(getattr(function, "__name__", type(function).__name__))


def named(metrics: Any) -> dict[str, Metric]:
    """Metrics by name; a function's own name unless a mapping gives another."""
    if isinstance(metrics, Mapping):
        result = dict(metrics)
    else:
        metrics = list(metrics)
        result = {_name(metric): metric for metric in metrics}
        if len(result) < len(metrics):
            raise ValueError("metrics: two have the same name; pass a mapping of names to metrics")
    for name, metric in result.items():
        if name in ("loss", "lr") or str(name).startswith("val_"):
            raise ValueError(f"metrics: the name {name!r} is the history's own; pass a mapping with another one")
        if not callable(metric):
            raise TypeError(f"metrics: expected functions f(y_true, y_pred), got {metric!r}")
    return result


def on_probabilities(metric: Metric) -> Metric:
    """The metric, told to take probabilities instead of decisions, of all rows at once.

    Not needed where its second argument is called `y_proba`, `y_prob` or `y_score`. Probabilities
    are the outputs' softmax for classes, (n, k), or (n,) of the second of two; for binary
    cross-entropy their sigmoid.

    >>> from steepest.train import on_probabilities
    >>> on_probabilities(lambda y_true, p: float(p[:, 1].mean())).takes
    'probabilities'
    """

    def scored(y_true: Array, y_pred: Array) -> Any:
        return metric(y_true, y_pred)

    scored.__name__ = _name(metric)
    scored.takes = "probabilities"  # type: ignore[attr-defined]
    return scored


def _takes(metric: Metric) -> str:
    """What to give the metric: "decisions", "probabilities" or "outputs"."""
    try:
        second = list(inspect.signature(metric).parameters)[1]
    except (TypeError, ValueError, IndexError):
        second = ""
    probabilities = second in ("y_proba", "y_prob", "y_score")
    default = "probabilities" if probabilities else "decisions"
    return str(getattr(metric, "takes", default))


class Scorer:
    """Collects batches of outputs and targets and scores all of them at once by every metric.

    What it keeps for that is what the metrics read: of classes a number per row, of probabilities or
    outputs as much as `Trainer.predict` returns.
    """

    def __init__(self, metrics: Mapping[str, Metric], link: Link) -> None:
        self._metrics = {name: (metric, _takes(metric)) for name, metric in metrics.items()}
        self._link = link
        self._outputs = self._targets = np.empty(0)
        self._count = 0
        self._parts: dict[str, list[tuple[Array, Array]]] = {takes: [] for _, takes in self._metrics.values()}

    def add(self, outputs: Array, targets: Array) -> None:
        """Takes a copy of the batch."""
        if not self._metrics:
            return
        end = self._count + len(outputs)
        if end > len(self._outputs) or targets.dtype != self._targets.dtype:
            self._judge()
            end = len(outputs)
            rows = max(end, CAPACITY // max(1, math.prod(outputs.shape[1:])))
            # New arrays, since what was judged may be views of the last.
            self._outputs = np.empty((rows, *outputs.shape[1:]), outputs.dtype)
            self._targets = np.empty((rows, *targets.shape[1:]), targets.dtype)
        part = slice(self._count, end)
        self._outputs[part], self._targets[part] = outputs, targets
        self._count = end

    def _judge(self) -> None:
        if self._count:
            outputs, targets = self._outputs[: self._count], self._targets[: self._count]
            for takes, parts in self._parts.items():
                parts.append(judged(outputs, targets, self._link, takes))
        self._count = 0

    def result(self) -> dict[str, float]:
        """Every metric's value for all that has been added; NaN for nothing."""
        self._judge()
        whole = {
            takes: [np.concatenate(values) for values in zip(*parts, strict=True)]
            for takes, parts in self._parts.items()
        }
        return {
            name: float(metric(*whole[takes])) if whole[takes] else math.nan
            for name, (metric, takes) in self._metrics.items()
        }


def judged(outputs: Array, targets: Array, link: Link, takes: str) -> tuple[Array, Array]:
    """The targets and what a metric is to compare with them: (y_true, y_pred)."""
    if takes == "outputs":
        return targets, outputs
    classes = targets.ndim < outputs.ndim
    if classes or link == "softmax":
        y_true = targets if classes else targets.argmax(-1)
        if takes == "decisions":
            return y_true, outputs.argmax(-1)
        p = _softmax(outputs)
        return y_true, p[..., 1] if p.shape[-1] == 2 else p
    outputs, targets = _squeezed(outputs), _squeezed(targets)
    if link is None:
        return targets, outputs
    y_pred = (outputs > 0).astype(np.intp) if takes == "decisions" else _sigmoid(outputs)
    return (targets > 0.5).astype(np.intp), y_pred


def _squeezed(array: Array) -> Array:
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array


def _softmax(outputs: Array) -> Array:
    p = np.exp(outputs - outputs.max(-1, keepdims=True))
    return np.asarray(p / p.sum(-1, keepdims=True))


def _sigmoid(outputs: Array) -> Array:
    e = np.exp(-np.abs(outputs))
    return np.asarray(np.where(outputs >= 0, 1 / (1 + e), e / (1 + e)))
