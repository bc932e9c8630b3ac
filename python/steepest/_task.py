"""What the command line trains on: a data set read, checked, split and encoded."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steepest._csv import read_columns
from steepest._encoding import Columns, Encoding, scale_of
from steepest.datasets import Pair, Splits, load_digits, load_idx_folder, load_npz, npz_inputs, read_idx, split

Array = NDArray[Any]

DIGITS = "digits"
TABLES = (".csv", ".tsv", ".txt")
PARTS = ("training", "validation", "test")


class Data(NamedTuple):
    """A source as it was read: numbers as features, labels or values as targets."""

    name: str
    splits: Splits
    target: str = "y"
    columns: Columns | None = None
    note: str = ""

    def fingerprint(self) -> str:
        """The same for the same samples alone."""
        digest = hashlib.sha256()
        for array in (array for part in self.splits if part for array in part):
            digest.update(f"{array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        return digest.hexdigest()


class Task(NamedTuple):
    """A data set made ready: x is float32 (samples, features), y class numbers or float32 targets."""

    train: Pair
    validation: Pair | None
    test: Pair
    encoding: Encoding
    fingerprint: str
    data: str
    target: str
    split: str


def load_task(settings: Mapping[str, Any], encoding: Encoding | None = None) -> Task:
    """Read a data set, draw the parts that it has not got, encode it by its training part or as given."""
    data = _read(settings, encoding)
    splits, task = prepared(data, settings["task"])
    splits, how = draw(splits, settings)
    parts = [part for part in splits if part]
    assert splits.test is not None
    if encoding is None or settings["from"]:
        encoding = _encoding(data, [x for x, _ in parts], splits.train[1], task, encoding)
    ready = [(encoding.inputs(data.name, x), encoding.targets(data.name, y)) for x, y in parts]
    labels = [label for label, part in zip(PARTS, splits, strict=True) if part]
    counts = ", ".join(f"{len(y):,} {label}" for (_, y), label in zip(ready, labels, strict=True))
    return Task(
        ready[0],
        ready[1] if splits.validation else None,
        ready[-1],
        encoding,
        data.fingerprint(),
        _described(data, sum(len(y) for _, y in ready), encoding),
        _target_line(data, encoding, guessed=settings["task"] is None),
        f"{counts} ({how})",
    )


def _read(settings: Mapping[str, Any], encoding: Encoding | None) -> Data:
    source, name = settings["data"], settings["target"]
    columns = encoding.columns if encoding else None
    kind = kind_of(source)
    if kind != "table":
        for option in ("target", "ignore", "header"):
            if settings[option] is not None:
                raise ValueError(f"--{option} is for tables (CSV files), not for {source or 'the digits'}")
        return read(source)
    if columns is not None:
        worded = encoding is not None and encoding.worded and not settings["from"]  # else the task may be another
        return read(source, replace(columns, target=name or columns.target), settings["header"], worded)
    return _read_table(source, name, settings["ignore"] or (), settings["header"])


def kind_of(source: str | None) -> str:
    """What a source is: "digits", "idx", "npz", "table" or "images" (one IDX file)."""
    if source is None or (source == DIGITS and not Path(source).exists()):
        return "digits"
    path = Path(source)
    if path.is_dir():
        return "idx"
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "no such file or folder", source)
    if path.suffix.lower() == ".npz":
        return "npz"
    if path.suffix.lower() in TABLES:
        return "table"
    if "idx" in path.name:
        return "images"
    expected = "a .csv or .npz file or a folder of MNIST-format IDX files"
    raise ValueError(f"{source}: expected {expected}")


def read(source: str | None, columns: Columns | None = None, header: bool | None = None, worded: bool = False) -> Data:
    """The samples of a source with their targets; a table's `columns` are known, and if its labels are strings."""
    kind = kind_of(source)
    if kind == "digits":
        return Data("digits (embedded)", Splits(load_digits()))
    assert source is not None
    if kind == "table":
        if columns is None:
            return _read_table(source, None, (), header)
        *features, y = picked(source, columns, header, target=True, worded=worded)
        return Data(source, Splits((columns.matrix(source, features), y)), columns.target, columns)
    if kind == "images":
        raise ValueError(f"{source}: one IDX file has no labels; give the folder of the four files")
    return Data(source, load_idx_folder(source) if kind == "idx" else load_npz(source))


def read_inputs(source: str, columns: Columns | None, header: bool | None) -> tuple[str, Array]:
    """The samples to predict for: all of a file's, or its test part where it has one."""
    kind = kind_of(source)
    if kind == "table" and columns is not None:
        return source, columns.matrix(source, picked(source, columns, header, target=False))
    if kind == "table":
        table = read_columns(Path(source), lambda names, _: list(range(len(names))), header)
        every = Columns.of(source, {**table, "": np.zeros(0)}, "", header=True)
        return source, every.matrix(source, list(table.values()))
    if kind == "images":
        return source, read_idx(source)
    if kind == "npz":
        return source, npz_inputs(source)
    data = read(source)
    return (
        (f"{data.name}, its test part", data.splits.test[0]) if data.splits.test else (data.name, data.splits.train[0])
    )


def picked(source: str, columns: Columns, header: bool | None, target: bool, worded: bool = False) -> list[Array]:
    """A table's features and, if asked for, its target last; what the model knows as strings is that."""
    places: list[str] = []
    strings: set[int] = set()
    known = [*(kind is not None for kind in columns.features.values()), worded]

    def wanted(names: list[str], named: bool) -> list[int]:
        found = columns.pick(names, named and columns.header, target)
        places.extend(names[i] for i in found)
        strings.update(i for i, words in zip(found, known, strict=False) if words)
        return found

    table = read_columns(Path(source), wanted, header, strings)
    return [table[name] for name in places[-len(table) :]]


def _read_table(source: str, target: str | None, ignore: Sequence[str], header: bool | None) -> Data:
    named = True

    def wanted(names: list[str], has_header: bool) -> list[int]:
        nonlocal target, named
        named = has_header
        for option, name in (("target", target), *(("ignore", name) for name in ignore)):
            if name is not None and name not in names:
                raise ValueError(f"--{option}: no column {name!r}; the columns are {', '.join(names)}")
        kept = [i for i, name in enumerate(names) if name not in ignore]
        if not kept or target in ignore:
            raise ValueError("--ignore: it leaves no target")
        target = target or names[kept[-1]]
        return kept

    table = read_columns(Path(source), wanted, header)
    assert target is not None
    note, first = "", next(iter(table))
    if named and first == "1" and first != target and _counts(table[first]):
        del table[first]
        note = ", without the first column, which has no name and counts the rows"
    columns = Columns.of(source, table, target, named)
    x = columns.matrix(source, [table[name] for name in columns.features])
    return Data(source, Splits((x, table[target])), target, columns, note)


def _counts(values: Array) -> bool:
    return any(np.array_equal(values, np.arange(start, start + len(values))) for start in (0, 1))


def prepared(data: Data, task: str | None) -> tuple[Splits, str]:
    """The parts with finite features, and targets as the task has them; and which task it is, guessed if None."""
    pairs = [part and _checked(data, label, *part) for label, part in zip(PARTS, data.splits, strict=True)]
    assert pairs[0] is not None
    task = task or _guess(pairs[0][1])
    of_task = _numbers if task == "regression" else _labels
    train, validation, test = (part and (part[0], of_task(data, part[1])) for part in pairs)
    assert train is not None
    return Splits(train, validation, test), task


def _checked(data: Data, label: str, x: Array, y: Array) -> Pair:
    where = data.name if data.columns else f"{data.name}: {label}"
    y = y.reshape(-1) if y.shape[1:] == (1,) else y
    if y.ndim != 1:
        raise ValueError(f"{where}: expected one label per sample, got labels of shape {y.shape}")
    for array, what in ((x, "values"), (y, "targets")):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = np.argwhere(~np.isfinite(array))
            raise ValueError(f"{where}: {len(bad):,} missing or infinite {what}, the first in sample {bad[0][0]}")
    return x, y


def _guess(y: Array) -> str:
    """Strings and few whole numbers, each there several times, are classes."""
    if y.dtype.kind not in "biuf" or y.dtype == bool:
        return "classification"
    different = len(np.unique(y))
    few = different <= 20 or 100 * different <= len(y)
    repeated = different <= 2 or 4 * different <= len(y)
    return "classification" if few and repeated and (np.floor(y) == y).all() else "regression"


def _numbers(data: Data, y: Array) -> Array:
    if y.dtype.kind not in "biuf":
        raise ValueError(f"{data.name}: {data.target}: expected numbers for a regression, got {str(y[0])!r}")
    return y.astype(np.float64)


def _labels(data: Data, y: Array) -> Array:
    if y.dtype.kind != "f":
        return y
    odd = y[np.floor(y) != y]
    if len(odd):
        raise ValueError(f"{data.name}: {data.target}: expected class labels (whole numbers or strings), got {odd[0]}")
    large = y[np.abs(y) >= 2**53]
    if len(large):
        raise ValueError(
            f"{data.name}: {data.target}: expected class labels that floats hold exactly (below 2**53), got {large[0]}"
        )
    return y.astype(np.int64)


def draw(splits: Splits, settings: Mapping[str, Any]) -> tuple[Splits, str]:
    """The parts, those that the source has not got drawn from the training part; and how."""
    whole, validation, test = splits
    asked = settings["validation_split"]
    if validation and asked is not None:
        raise ValueError("--validation-split: the data have a validation part of their own")
    share = 0.0 if validation else 0.1 if asked is None else asked
    try:
        drawn = split(*whole, seed=settings["seed"], validation=share, test=0.0 if test else 0.2)
    except ValueError as error:
        reason = str(error).removeprefix("split: ").replace("validation=", "--validation-split ")
        raise ValueError(f"{settings['data'] or DIGITS}: {reason}") from None
    missing = [name for name, part in (("validation", drawn.validation), ("test", drawn.test)) if part]
    which = f"{missing[0]} " if len(missing) == 1 else ""
    stratified = "" if whole[1].dtype.kind == "f" else " stratified"
    how = f"{which}drawn{stratified}, seed {settings['seed']}" if missing else "as given"
    return Splits(drawn.train, drawn.validation or validation, drawn.test or test), how


def _encoding(data: Data, xs: Sequence[Array], y: Array, task: str, earlier: Encoding | None) -> Encoding:
    """By the training part; with the features, and a regression's scale, of the model to start from."""
    classes, center, spread = None, 0.0, 1.0
    if task == "classification":
        classes = np.unique(y)
        if len(classes) < 2:
            raise ValueError(f"{data.name}: all labels are {classes[0]}; expected at least two classes")
    elif earlier and earlier.task == task:
        center, spread = earlier.center, earlier.spread
    else:
        if y.min() == y.max():
            raise ValueError(f"{data.name}: all values of {data.target} are {y[0]:g}: there is nothing to learn")
        with np.errstate(over="ignore", invalid="ignore"):
            center, spread = float(y.mean()), float(y.std())
        if not 0 < spread < np.inf:  # their squares overflow, or underflow
            size = "small" if spread == 0 else "large"
            raise ValueError(f"{data.name}: the values of {data.target} are too {size} to standardise; scale them")
    if earlier:
        return replace(earlier, target=data.target, classes=classes, center=center, spread=spread, columns=data.columns)
    embedded = data.name.startswith("digits (")
    mean, deviation = (0.0, 1.0) if embedded else scale_of(data.name, xs)
    return Encoding(xs[0].shape[1:], mean, deviation, data.target, classes, center, spread, data.columns)


def _described(data: Data, samples: int, encoding: Encoding) -> str:
    size = " x ".join(map(str, encoding.shape)) or "1"
    classes = "" if encoding.classes is None else f", {len(encoding.classes)} classes"
    scaling = ", standardised"
    if np.ndim(encoding.mean) == 0:
        scaling = "" if encoding.deviation == 1 else f", divided by {encoding.deviation:g}"
    else:
        constant = np.flatnonzero(np.isinf(encoding.deviation))
        scaling += f", {len(constant)} of them constant" if len(constant) else ""
        if encoding.columns and len(constant):
            scaling += f" ({', '.join(encoding.columns.names[i] for i in constant[:5])}{', ...' * (len(constant) > 5)})"
    made = ""
    if encoding.columns and len(encoding.columns.features) != encoding.shape[0]:
        strings = [name for name, kind in encoding.columns.features.items() if kind is not None]
        made = f" (of {len(encoding.columns.features)} columns; one per value of {', '.join(strings)})"
    return f"{data.name}, {samples:,} samples of {size} feature{'s' * (size != '1')}{made}{classes}{scaling}{data.note}"


def _target_line(data: Data, encoding: Encoding, guessed: bool) -> str:
    other = {"classification": "regression", "regression": "classification"}[encoding.task]
    how = f" (guessed; else --task {other})" if guessed else ""
    if encoding.classes is None:
        return f"{data.target}: regression{how}, mean {encoding.center:.6g}, standard deviation {encoding.spread:.6g}"
    shown = ", ".join(map(str, encoding.classes[:10])) + ", ..." * (len(encoding.classes) > 10)
    return f"{data.target}: classification{how} into {shown}"
