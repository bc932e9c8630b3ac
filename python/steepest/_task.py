"""What the command line trains on: a data set checked, split, numbered and scaled."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steepest.datasets import Pair, Splits, load_digits, load_idx_folder, load_npz, split

Array = NDArray[Any]


class Task(NamedTuple):
    """A data set made ready: x is float32 (samples, features), y is 0..classes - 1."""

    train: Pair
    validation: Pair
    test: Pair
    classes: int
    data: str
    split: str


def load_task(source: str | None, seed: int) -> Task:
    """Read a data set, draw the parts that it has not got, number its labels, scale its features.

    `source`: a folder of IDX files, an .npz file, or None for the digits.
    """
    name, splits = _read(source)
    whole, validation, test = (
        part and _checked(f"{name}: {label}", *part)
        for label, part in zip(("training", "validation", "test"), splits, strict=True)
    )
    assert whole is not None
    shares = {"validation": 0.0 if validation else 0.1, "test": 0.0 if test else 0.2}
    drawn = split(*whole, seed=seed, **shares)
    parts = drawn.train, drawn.validation or validation, drawn.test or test
    xs, ys = map(list, zip(*(part for part in parts if part), strict=True))

    size = " x ".join(map(str, xs[0].shape[1:])) or "1"
    flat = [x.reshape(len(x), -1) for x in xs]
    with np.errstate(over="ignore", invalid="ignore"):
        xs, scaling = _scaled(flat) if source else (flat, "")
    classes, ys = _numbered(name, ys)
    train, valid, tested = zip(xs, ys, strict=True)
    missing = [part for part, share in shares.items() if share]
    which = f"{missing[0]} " if len(missing) == 1 else ""
    how = f"{which}drawn stratified, seed {seed}" if missing else "as given"
    counts = zip(("training", "validation", "test"), map(len, ys), strict=True)
    return Task(
        train,
        valid,
        tested,
        len(classes),
        f"{name}, {sum(map(len, ys)):,} samples of {size} features, {len(classes)} classes{scaling}",
        f"{', '.join(f'{n:,} {part}' for part, n in counts)} ({how})",
    )


def _read(source: str | None) -> tuple[str, Splits]:
    if source is None:
        return "digits (embedded)", Splits(load_digits())
    path = Path(source)
    if path.is_dir():
        return source, load_idx_folder(path)
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "no such file or folder", source)
    if path.suffix.lower() != ".npz":
        raise ValueError(f"{source}: expected a folder of MNIST-format IDX files or an .npz file")
    return source, load_npz(path)


def _checked(where: str, x: Array, y: Array) -> Pair:
    """Finite features and one label per sample, whole floats as integers; else ValueError."""
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        bad = np.argwhere(~np.isfinite(x))
        raise ValueError(f"{where}: {len(bad):,} missing or infinite values, the first in sample {bad[0][0]}")
    y = y.reshape(-1) if y.shape[1:] == (1,) else y
    if y.ndim != 1:
        raise ValueError(f"{where}: expected one label per sample, got labels of shape {y.shape}")
    if y.dtype.kind == "f":
        odd = y[~(np.floor(y) == y)]
        if len(odd):
            raise ValueError(f"{where}: expected class labels (whole numbers or strings), got {odd[0]}")
        y = y.astype(np.int64)
    return x, y


def _numbered(name: str, ys: Sequence[Array]) -> tuple[Array, list[Array]]:
    """The classes that training has, sorted, and every label as its place among them."""
    classes = np.unique(ys[0])
    if len(classes) < 2:
        raise ValueError(f"{name}: all labels are {classes[0]}; expected at least two classes")
    numbered = []
    for y in ys:
        known = np.isin(y, classes)
        if not known.all():
            raise ValueError(f"{name}: no training sample has the label {y[~known][0]}")
        numbered.append(np.searchsorted(classes, y))
    return classes, numbered


def _scaled(xs: Sequence[Array]) -> tuple[list[Array], str]:
    """Bytes divided by the largest; other features standardised. By the training part alone."""
    if all(x.dtype == np.uint8 for x in xs):
        top = np.float32(max(xs[0].max(), 1))
        return [x.astype(np.float32) / top for x in xs], f", divided by {top:g}"
    reference = xs[0].astype(np.float64)
    mean, varies = reference.mean(0), np.ptp(reference, 0) > 0
    deviation = np.where(varies, reference.std(0), 1.0)
    if not np.isfinite(deviation).all():
        raise ValueError("the features are too large to standardise; scale them down")
    scaled = [((x - mean) / deviation).astype(np.float32) for x in xs]
    constant = np.count_nonzero(~varies)
    return scaled, ", standardised" + (f", {constant} of them constant" if constant else "")
