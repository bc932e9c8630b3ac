"""How the data of the command line become a model's inputs and targets; a checkpoint keeps it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Table = Mapping[str, Array]

MOST_CATEGORIES = 50


@dataclass(frozen=True)
class Columns:
    """A table's columns: each feature's strings (None: it holds numbers), the target, whether the file had names."""

    features: dict[str, list[str] | None]
    target: str
    header: bool

    @classmethod
    def of(cls, where: str, table: Table, target: str, header: bool) -> Columns:
        """Those of a table; ValueError for a column of strings that cannot be told from a mistake."""
        features: dict[str, list[str] | None] = {}
        for name, values in table.items():
            if name != target:
                features[name] = _categories(where, name, values) if values.dtype.kind == "U" else None
        if not features:
            raise ValueError(f"{where}: there are no features beside the target {target}")
        return cls(features, target, header)

    @property
    def names(self) -> list[str]:
        """What the columns of `matrix` hold."""
        return [
            name if kind is None else f"{name}={value}"
            for name, kind in self.features.items()
            for value in (kind or [""])
        ]

    def pick(self, names: Sequence[str], header: bool, target: bool) -> list[int]:
        """Where these columns are, the target's last if it is asked for; without names, they go by place."""
        wanted = [*self.features, *([self.target] if target else [])]
        if not header:
            given = [name for name in self._in_file if target or name != self.target]
            if len(names) in (len(given), len(self._in_file)):
                return [(given if len(names) == len(given) else self._in_file).index(name) for name in wanted]
            raise ValueError(f"expected {len(given)} columns, as the model's data had, got {len(names)}")
        absent = [name for name in wanted if name not in names]
        if absent:
            raise ValueError(f"no column {absent[0]}, which the model needs; the columns are {', '.join(names)}")
        return [names.index(name) for name in wanted]

    @property
    def _in_file(self) -> list[str]:
        """The columns' names in the order of the file, if that had none and they are numbers."""
        every = [*self.features, self.target]
        return every if self.header else sorted(every, key=int)

    def matrix(self, where: str, columns: Sequence[Array]) -> Array:
        """The features as numbers, (rows, width): a column of strings becomes one of 0 and 1 for each of them."""
        parts = []
        for (name, known), values in zip(self.features.items(), columns, strict=True):
            if known is None:
                if values.dtype.kind == "U":
                    raise ValueError(f"{where}: column {name}: expected numbers, got {_first_word(values)!r}")
                parts.append(values[:, None])
            else:
                places = _places(values, np.array(known))
                if (places < 0).any():
                    new = values[places < 0][0]
                    raise ValueError(f"{where}: column {name}: expected one of {_some(known)}, got {str(new)!r}")
                parts.append(places[:, None] == np.arange(len(known)))
        return np.concatenate(parts, axis=1, dtype=np.float64)


def _categories(where: str, name: str, values: Array) -> list[str]:
    found: list[str] = np.unique(values).tolist()
    if len(found) > MOST_CATEGORIES or 2 * len(found) > len(values):
        raise ValueError(
            f"{where}: column {name} has {len(found):,} different strings in {len(values):,} rows, too many for a "
            f"feature (such as {_first_word(values)!r}); correct it, or leave it out with --ignore"
        )
    return found


def _first_word(values: Array) -> str:
    """The first that is not a number."""
    for value in values:
        try:
            float(value)
        except ValueError:
            return str(value)
    return str(values[0])


def _places(values: Array, known: Array) -> Array:
    """The place of each value among the sorted `known`, -1 where it is not there."""
    places = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.where(known[places] == values, places, -1)


def _some(values: Sequence[Any], most: int = 6) -> str:
    shown = ", ".join(map(str, values[:most]))
    return shown if len(values) <= most else f"{shown}, ... ({len(values)} in all)"


@dataclass(frozen=True)
class Encoding:
    """From raw samples to a model's inputs and targets, and from its outputs back.

    `shape` is a sample's; features are (x - mean) / deviation, where an infinite deviation stands for
    a constant feature. `classes` are the sorted labels, None in a regression, whose target is
    standardised with `center` and `spread`.
    """

    shape: tuple[int, ...]
    mean: Any
    deviation: Any
    target: str
    classes: Array | None
    center: float = 0.0
    spread: float = 1.0
    columns: Columns | None = None

    @property
    def labelled(self) -> bool:
        """Whether the targets are classes."""
        return self.classes is not None

    @property
    def worded(self) -> bool:
        """Whether the classes are strings."""
        return self.classes is not None and self.classes.dtype.kind == "U"

    @property
    def task(self) -> str:
        """`--task`."""
        return "classification" if self.labelled else "regression"

    @property
    def outputs(self) -> int:
        """How many the model has."""
        return 1 if self.classes is None else len(self.classes)

    def inputs(self, where: str, x: Array) -> Array:
        """float32 (samples, features)."""
        if x.shape[1:] != self.shape:
            raise ValueError(f"{where}: expected samples of shape {self.shape}, as the model had, got {x.shape[1:]}")
        flat = x.reshape(len(x), -1)
        if np.ndim(self.mean) == 0 and self.mean == 0:
            scaled: Array = flat.astype(np.float32)
            return scaled if self.deviation == 1 else np.divide(scaled, np.float32(self.deviation), out=scaled)
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = ((flat - self.mean) / self.deviation).astype(np.float32)
        if not np.isfinite(scaled).all():
            raise ValueError(f"{where}: the features are too large; scale them down")
        return scaled

    def targets(self, where: str, y: Array) -> Array:
        """The place of every label among the classes, or the standardised target, float32."""
        if self.classes is None:
            if y.dtype.kind not in "biuf":
                raise ValueError(f"{where}: {self.target}: expected numbers, got {str(y[0])!r}")
            with np.errstate(over="ignore", invalid="ignore"):
                scaled = np.asarray((y.astype(np.float64) - self.center) / self.spread, np.float32)
            if not np.isfinite(scaled).all():
                raise ValueError(f"{where}: {self.target}: the values are too large; scale them down")
            return scaled
        if (y.dtype.kind == "U") != self.worded:
            raise ValueError(f"{where}: expected labels such as {self.classes[0]}, got {y[0]}")
        places = _places(y, self.classes)
        if (places < 0).any():
            raise ValueError(f"{where}: no training sample has the label {y[places < 0][0]}")
        return places

    def values(self, outputs: Array) -> Array:
        """The target of a regression, in its own unit."""
        return np.asarray(outputs[:, 0].astype(np.float64) * self.spread + self.center)

    def document(self) -> dict[str, Any]:
        """Plain data and arrays, for a checkpoint."""
        return asdict(self)

    @classmethod
    def of_document(cls, saved: Mapping[str, Any]) -> Encoding:
        """What `document` gave; ValueError for anything else."""
        try:
            columns = saved["columns"]
            return cls(**{**saved, "columns": None if columns is None else Columns(**columns)})
        except (KeyError, TypeError):
            raise ValueError(f"encoding: expected what steepest train keeps, got {saved!r:.80}") from None


def scale_of(where: str, xs: Sequence[Array]) -> tuple[Any, Any]:
    """(0, the largest) of bytes; else mean and standard deviation of every feature; of the first part alone."""
    if all(x.dtype == np.uint8 for x in xs):
        return 0.0, float(max(xs[0].max(), 1))
    reference = xs[0].reshape(len(xs[0]), -1).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, deviation = reference.mean(0), reference.std(0)
        varies = np.ptp(reference, 0) > 0
    if not np.isfinite(deviation).all():
        raise ValueError(f"{where}: the features are too large to standardise; scale them down")
    return mean, np.where(varies & (deviation > 0), deviation, math.inf)
