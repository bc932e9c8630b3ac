"""Tables in CSV files."""

from __future__ import annotations

import contextlib
import csv
import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["load_csv", "read_columns"]

Array = NDArray[Any]
Row = tuple[int, list[str]]  # the line that it begins in, its fields

MISSING = frozenset(("", "na", "n/a", "#n/a", "<na>", "nan", "+nan", "-nan", "null", "?"))
ROWS = 4096  # converted at a time, so that the file's text is never in memory as a whole


class _NotNumbersError(Exception):
    """A column that began with numbers turned out to hold strings too."""


def load_csv(
    path: str | os.PathLike[str], *, header: bool | None = None, ignore: Collection[str] = ()
) -> dict[str, Array]:
    """Read a table: its columns by name, in their order.

    A column in which every field is a number is int64 if all are whole and have a place there, else
    float64; any other holds strings. Fields are separated by commas, semicolons or tabs (the first
    line that is not empty tells), may be quoted, and are stripped of blanks; empty lines don't count.
    The text is UTF-8.

    - `header` (None): whether the first row has the columns' names. None: it does where a word in it
      stands above a number, or all of it is different words. Without a header row, and where it has
      no name, the columns are called "1", "2", ...
    - `ignore`: names of columns to leave out; whatever is missing there does not matter.

    Raises `ValueError`, with the line, for a row of another length than the first one and for
    quotes that don't match; with the column and the line for missing values (an empty field, NA,
    N/A, NaN, null or ?); for names that are there twice, or not at all; for a file without rows.
    `OSError` if it cannot be opened.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with open(f"{folder}/plants.csv", "w") as file:
    ...         _ = file.write('height,kind\\n1.5,"fir, silver"\\n2,oak\\n')
    ...     load_csv(f"{folder}/plants.csv")
    {'height': array([1.5, 2. ]), 'kind': array(['fir, silver', 'oak'], dtype='<U11')}
    """

    def wanted(names: list[str], header: bool) -> list[int]:
        for name in ignore:
            if name not in names:
                raise ValueError(f"ignore: no column {name!r}; the columns are {', '.join(names)}")
        return [i for i, name in enumerate(names) if name not in ignore]

    return read_columns(Path(path), wanted, header)


def read_columns(
    path: Path,
    wanted: Callable[[list[str], bool], list[int]],
    header: bool | None = None,
    strings: set[int] | None = None,
) -> dict[str, Array]:
    """The columns that `wanted` picks, given all their names and whether those are in the file.

    Those in `strings`, which `wanted` may fill, hold strings even if all are numbers.
    """
    strings = set() if strings is None else strings
    while True:
        try:
            return _read(path, wanted, header, strings)
        except _NotNumbersError as found:
            strings.add(found.args[0])
        except UnicodeDecodeError:
            raise ValueError(f"{path}: not a table in UTF-8 text") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def _read(
    path: Path, wanted: Callable[[list[str], bool], list[int]], header: bool | None, strings: set[int]
) -> dict[str, Array]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        delimiter = _delimiter(next((line for line in file if line.strip("\r\n")), ""))
        file.seek(0)
        rows = _rows(csv.reader(file, delimiter=delimiter, strict=True, skipinitialspace=True))
        chunk = list(islice(rows, ROWS))
        if not chunk:
            raise ValueError("the file is empty")
        if header is None:
            header = _is_header(*(fields for _, fields in chunk[:2]))
        names = _names(chunk[0][1], header)
        columns = [_Column(i, names[i], i in strings) for i in wanted(names, header)]
        chunk = chunk[header:] or list(islice(rows, ROWS))
        if not chunk:
            raise ValueError("there is no row below the names of the columns")
        while chunk:
            lines, fields = zip(*chunk, strict=True)
            for column in columns:
                column.add([row[column.index] for row in fields], lines)
            chunk = list(islice(rows, ROWS))
    incomplete = [column for column in columns if column.missing]
    if incomplete:
        listed = ", ".join(f"{c.missing:,} in column {c.name} (the first in line {c.first})" for c in incomplete)
        raise ValueError(f"missing values: {listed}; fill them in, or leave these rows or columns out")
    return {column.name: column.values() for column in columns}


class _Column:
    """A column that grows by a chunk of rows at a time."""

    def __init__(self, index: int, name: str, strings: bool) -> None:
        self.index, self.name, self.strings = index, name, strings
        self.missing, self.first = 0, 0
        self._chunks: list[Array] = []

    def add(self, fields: Sequence[str], lines: Sequence[int]) -> None:
        fields = [field.strip() for field in fields]
        missing = [i for i, field in enumerate(fields) if field.lower() in MISSING]
        if missing:
            self.first = self.first or lines[missing[0]]
            self.missing += len(missing)
            for i in missing:
                fields[i] = "nan"
        numbers = None if self.strings else _numbers(fields)
        if numbers is None and not self.strings:
            if self._chunks:
                raise _NotNumbersError(self.index)
            self.strings = True
        self._chunks.append(np.array(fields) if numbers is None else numbers)

    def values(self) -> Array:
        whole = not self.strings and all(
            chunk.dtype.kind == "i" or bool(((np.floor(chunk) == chunk) & (np.abs(chunk) < 2**53)).all())
            for chunk in self._chunks
        )
        return np.concatenate([chunk.astype(np.int64) if whole else chunk for chunk in self._chunks])


def _numbers(fields: Sequence[str]) -> Array | None:
    """The fields as float64, as int64 where that would round whole ones; None if one is not a number."""
    if "_" in "".join(fields):  # Python reads 1_000 as a number
        return None
    try:
        numbers = np.fromiter(map(float, fields), np.float64, len(fields))
    except ValueError:
        return None
    large = np.abs(numbers) >= 2**53
    if large.any() and (np.floor(numbers) == numbers).all():
        with contextlib.suppress(ValueError, OverflowError):  # 1e300, 2**63: they stay as they are
            exact = np.array([int(fields[i]) for i in np.flatnonzero(large).tolist()], np.int64)
            numbers = np.where(large, 0, numbers).astype(np.int64)
            numbers[large] = exact
    return numbers


def _rows(reader: Any) -> Iterator[Row]:
    """The rows that are not empty, with their lines; ValueError for one of another length."""
    width, first = 0, 0
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"line {line}: {error}") from None
        if not fields:
            continue
        if not width:
            width, first = len(fields), line
        if len(fields) != width:
            raise ValueError(f"line {line}: expected {width} fields, as line {first} has, got {len(fields)}")
        yield line, fields


def _delimiter(line: str) -> str:
    return max(",;\t", key=lambda delimiter: len(next(csv.reader([line], delimiter=delimiter), [])))


def _is_number(field: str) -> bool:
    numbers = _numbers([field.strip()])
    return numbers is not None and math.isfinite(numbers[0])


def _is_header(first: list[str], second: Sequence[str] = ()) -> bool:
    words = [not _is_number(field) and field.strip().lower() not in MISSING for field in first]
    if any(word and _is_number(below) for word, below in zip(words, second, strict=False)):
        return True
    return not any(map(_is_number, first)) and len(set(first)) == len(first)


def _names(first: list[str], header: bool) -> list[str]:
    names = [first[i].strip() * header or str(i + 1) for i in range(len(first))]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ValueError(f"two columns are called {name!r}")
    return names
