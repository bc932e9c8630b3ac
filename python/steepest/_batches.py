"""Where training data comes from: arrays, gathered batch by batch, or a stream of batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from typing import Any

import numpy as np

from steepest import _core
from steepest._arguments import check_positive, plain_array
from steepest.nn.layer import Array, Buffers

__all__ = [
    "Arrays",
    "Batch",
    "Stream",
    "class_factors",
    "class_numbers",
    "source",
    "split_rows",
    "take",
    "with_validation",
]

Batch = tuple[Array, Array | None, Array | None]  # inputs, targets, sample weights
WORTH_FETCHING = 1 << 14  # bytes of a batch from which on the compiled gathering is quicker than NumPy's


class Arrays:
    """Batches of rows of arrays or memory maps, which are only read where a batch needs them."""

    def __init__(
        self,
        x: Array,
        y: Array | None,
        weight: Array | None,
        batch_size: int | None,
        rows: Array | None = None,
    ) -> None:
        if x.ndim == 0:
            raise ValueError(f"x: expected rows, got shape {x.shape}")
        if batch_size is not None:
            batch_size = check_positive("batch_size", batch_size, "None or a positive integer")
        self.x, self.y, self.weight, self.rows = x, y, weight, rows
        self.size = len(x) if rows is None else len(rows)
        self.requested = batch_size
        self.batch_size = self.size if batch_size is None else min(batch_size, self.size)
        if rows is not None and self.batch_size == self.size:  # one batch: gather it once
            self.x, self.rows = x[rows], None
            self.y = None if y is None else y[rows]
            self.weight = None if weight is None else weight[rows]
        self._buffer = Buffers(x.dtype)

    def __len__(self) -> int:
        return -(-self.size // max(self.batch_size, 1))  # an empty array has no batches

    def batches(self, rng: np.random.Generator | None = None) -> Iterator[Batch]:
        """One epoch, shuffled if there is a generator to do it with."""
        return map(self.take, self.parts(self.order(rng)))

    def order(self, rng: np.random.Generator | None) -> Array | None:
        """The numbers of an epoch's rows, shuffled if there is a generator; None for all as they stand."""
        shuffled = rng is not None and len(self) > 1
        if self.rows is None and not shuffled:
            return None
        rows = np.arange(self.size) if self.rows is None else self.rows
        return rows if rng is None else rng.permutation(rows)

    def parts(self, order: Array | None, start: int = 0) -> Iterator[slice | Array]:
        """The epoch's batches from row `start` on: as numbers, or as slices where there is no order."""
        parts = (slice(at, at + self.batch_size) for at in range(start, self.size, max(self.batch_size, 1)))
        return parts if order is None else map(order.__getitem__, parts)

    def take(self, rows: slice | Array) -> Batch:
        """Some rows: views where they are a slice, else copies in arrays that the next call reuses."""
        return (
            self._take("x", self.x, rows),
            None if self.y is None else self._take("y", self.y, rows),
            None if self.weight is None else self._take("weight", self.weight, rows),
        )

    def _take(self, name: str, array: Array, rows: slice | Array) -> Array:
        if isinstance(rows, slice):
            return array[rows]
        out = self._buffer(name, (len(rows), *array.shape[1:]), array.dtype)
        take(array, rows, out)
        return out


def take(array: Array, rows: Array, out: Array) -> None:
    """out = array[rows], for row numbers that are in range."""
    if out.nbytes >= WORTH_FETCHING and array.flags.c_contiguous and not array.dtype.hasobject:
        _core.take_rows(array, rows, out)
    else:  # mode="raise" would make it buffer its output
        array.take(rows, axis=0, out=out, mode="clip")


class Stream:
    """Batches (x, y) or (x, y, sample weights) of any iterable, once per epoch."""

    def __init__(self, batches: Iterable[Any]) -> None:
        if not isinstance(batches, Iterable):
            raise TypeError(f"x: without y, expected an iterable of batches (x, y), got {type(batches).__name__}")
        self.batch_size = math.inf  # unknown
        self._batches = batches
        self._spent = False

    def batches(self, rng: np.random.Generator | None = None) -> Iterator[Batch]:
        """One epoch, in the stream's own order."""
        iterator = iter(self._batches)
        if self._spent and iterator is self._batches:
            raise ValueError(
                "x is an iterator that one epoch has used up; pass a list or an object whose __iter__ starts anew"
            )
        self._spent = True
        for batch in iterator:
            if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
                raise ValueError(f"x: expected batches (x, y) or (x, y, weight), got {batch!r:.80}")
            x, y, weight = (*batch, None)[:3]
            yield _arrays(x, y, weight)

    def order(self, rng: np.random.Generator | None) -> None:
        """None: the stream's own."""

    def parts(self, order: Array | None, start: int = 0) -> Iterator[Batch]:
        """An epoch's batches."""
        return self.batches()

    def take(self, batch: Batch) -> Batch:
        """The batch."""
        return batch


def _arrays(x: Any, y: Any, weight: Any) -> tuple[Array, Array, Array | None]:
    return plain_array("x", x), plain_array("y", y), None if weight is None else plain_array("sample_weight", weight)


def source(x: Any, y: Any = None, weight: Any = None, batch_size: int | None = None) -> Arrays | Stream:
    """Arrays if there are targets, else a stream; ValueError if lengths or `batch_size` are off."""
    if y is None:
        if weight is not None:
            raise ValueError("sample_weight: a stream's batches carry their own: (x, y, weight)")
        return Stream(x)
    x, y, weight = _arrays(x, y, weight)
    if x.ndim == 0 or len(x) == 0:
        raise ValueError(f"x: expected at least one example, got shape {x.shape}")
    for name, array in (("y", y), ("sample_weight", weight)):
        if array is not None and array.shape[:1] != x.shape[:1]:
            raise ValueError(f"{name}: expected {len(x)} rows, as x has, got shape {array.shape}")
    return Arrays(x, y, weight, batch_size)


def class_factors(class_weight: Any, data: Arrays | Stream, classes: int, ignored: int | None) -> Array | None:
    """`class_weight`, a mapping, a sequence or "balanced", as an array with an entry per class."""
    if class_weight is None:
        return None
    if isinstance(class_weight, str) and class_weight == "balanced":
        return _balanced(data, classes, ignored)
    if isinstance(class_weight, str) or not isinstance(class_weight, Iterable):
        raise TypeError(f"class_weight: expected factors by class or 'balanced', got {class_weight!r}")
    factors = np.ones(classes)
    pairs = class_weight.items() if isinstance(class_weight, Mapping) else enumerate(class_weight)
    for label, factor in pairs:
        if not isinstance(label, int | np.integer | np.bool_) or not isinstance(factor, Real):
            raise TypeError(f"class_weight: expected numbers by class number, got {label!r}: {factor!r}")
        if not 0 <= label < classes or not 0 <= float(factor) < math.inf:
            raise ValueError(
                f"class_weight: expected finite weights >= 0 of classes 0 to {classes - 1}, got {label!r}: {factor!r}"
            )
        factors[int(label)] = factor  # True is class 1
    return factors


def _balanced(data: Arrays | Stream, classes: int, ignored: int | None) -> Array:
    if isinstance(data, Stream) or data.y is None:
        raise ValueError("class_weight: 'balanced' needs arrays, not a stream; give numbers")
    y = data.y if data.rows is None else data.y[data.rows]
    labels = class_numbers(y if ignored is None else y[y != ignored], classes)
    counts = np.bincount(labels.reshape(-1), minlength=classes)
    return np.asarray(labels.size / (np.count_nonzero(counts) * np.maximum(counts, 1)))


def class_numbers(y: Array, classes: int, ignored: int | None = None) -> Array:
    """Integer labels as indices, any for those that are ignored; ValueError unless they are in 0..classes - 1."""
    labels = y.reshape(-1) if y.ndim == 2 and y.shape[1] == 1 else y
    if labels.dtype.kind not in "iub":
        raise ValueError(f"class_weight: expected integer labels, got {y.dtype} {y.shape}; pass sample_weight instead")
    if ignored is not None:
        labels = np.where(labels == ignored, 0, labels)
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"y: expected labels 0 to {classes - 1}, got {labels.min()} to {labels.max()}")
    return labels.astype(np.intp)


def with_validation(
    data: Arrays | Stream, split: float, given: Any, seed: int
) -> tuple[Arrays | Stream, Arrays | Stream | None]:
    """The data to train on and to validate on."""
    if given is not None:
        if split:
            raise ValueError("pass validation_split or validation_data, not both")
        is_list = isinstance(given, list) and all(isinstance(part, np.ndarray) for part in given)
        arrays = (is_list or isinstance(given, tuple)) and len(given) in (2, 3)
        if isinstance(given, np.ndarray):
            raise TypeError("validation_data: expected (x, y), (x, y, sample weights) or batches of them, got an array")
        x, y, weight = (*given, None)[:3] if arrays else (given, None, None)
        return data, source(x, y, weight, 1024)
    if not split:
        return data, None
    if isinstance(data, Stream) or data.y is None:
        raise ValueError("validation_split: a stream can't be split; pass validation_data")
    try:
        kept, held_out = split_rows(data.y, split, seed)
    except ValueError as error:
        raise ValueError(f"validation_split: {str(error).removeprefix('fraction: ')}") from None
    columns = data.x, data.y, data.weight
    return Arrays(*columns, data.requested, kept), Arrays(*columns, 1024, held_out)


def split_rows(y: Array, fraction: float, seed: int = 0, *, stratify: bool | None = None) -> tuple[Array, Array]:
    """Two disjoint sets of row numbers, in ascending order: those kept, those held out.

    Held out is round(fraction len(y)), drawn at random with `seed`; stratified, each class gives
    its share of them, rounded down or up. `stratify` None: whenever `y` is one axis of integers (or
    booleans, or strings) with fewer classes than half its length. ValueError unless
    0 <= fraction < 1 leaves something on both sides (with 0, nothing is held out).

    >>> import numpy as np
    >>> kept, held_out = split_rows(np.repeat([0, 1, 2], 10), 0.2)
    >>> len(kept), (held_out // 10).tolist()
    (24, [0, 0, 1, 1, 2, 2])
    """
    y = np.asarray(y)
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction: expected 0 <= fraction < 1, got {fraction!r}")
    wanted = round(fraction * len(y))
    if fraction and not 0 < wanted < len(y):
        raise ValueError(f"fraction: {fraction} of {len(y)} rows leaves a side empty")
    labels = _labels(y, stratify)
    counts = np.bincount(labels)
    shares = _shares(counts, wanted)
    shuffled = np.random.default_rng(seed).permutation(len(y))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    place = np.arange(len(y)) - np.repeat(np.cumsum(counts) - counts, counts)
    held_out = place < np.repeat(shares, counts)
    return np.sort(by_class[~held_out]), np.sort(by_class[held_out])


def _labels(y: Array, stratify: bool | None) -> Array:
    """Class numbers from 0 up; all 0 where classes play no part."""
    if stratify is False or (stratify is None and (y.ndim != 1 or y.dtype.kind not in "iubUS")):
        return np.zeros(len(y), np.intp)
    classes, labels = np.unique(y, return_inverse=True)
    if stratify is None and 2 * len(classes) > len(y):
        return np.zeros(len(y), np.intp)
    return labels.reshape(-1)


def _shares(counts: Array, wanted: int) -> Array:
    """How many of each class to take: shares by largest remainder, `wanted` in all."""
    exact = counts * (wanted / max(counts.sum(), 1))
    shares: Array = np.floor(exact).astype(np.intp)
    largest = np.argsort(shares - exact, kind="stable")
    shares[largest[: wanted - shares.sum()]] += 1
    return shares
