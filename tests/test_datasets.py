"""The embedded digits, the readers (what they take and what they refuse) and the split."""

from __future__ import annotations

import gzip
import io
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from steepest import datasets

IMAGES = np.arange(3 * 2 * 2, dtype=np.uint8).reshape(3, 2, 2)
LABELS = np.array([2, 0, 1], np.uint8)


def idx(array: NDArray[Any], code: int = 0x08) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def refused_or(read: Callable[[Path], Any], path: Path) -> Any:
    """What was read; None if it was refused by name."""
    try:
        return read(path)
    except ValueError as error:
        if path.name in str(error):
            return None
        raise


# ---- digits


def test_digits() -> None:
    x, y = datasets.load_digits()
    assert (x.shape, x.dtype) == ((1797, 64), np.dtype(np.float32))
    assert (y.shape, y.dtype) == ((1797,), np.dtype(np.int64))
    assert x.min() == 0
    assert x.max() == 1
    assert x.flags.writeable
    assert np.bincount(y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_are_scikit_learns() -> None:
    theirs = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = datasets.load_digits()
    assert np.array_equal(x * 16, theirs.data)
    assert np.array_equal(y, theirs.target)


def test_digits_carry_their_licence() -> None:
    text = (resources.files("steepest") / "data" / "digits.LICENSE.txt").read_text()
    assert "CC BY 4.0" in text
    assert "UCI Machine Learning Repository" in text


# ---- IDX


@pytest.mark.parametrize(
    ("code", "dtype"),
    [(0x08, "u1"), (0x09, "i1"), (0x0B, "i2"), (0x0C, "i4"), (0x0D, "f4"), (0x0E, "f8")],
)
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (0, 3)])
@pytest.mark.parametrize("zipped", [False, True])
def test_idx_types(tmp_path: Path, code: int, dtype: str, shape: tuple[int, ...], zipped: bool) -> None:
    array = np.arange(-3, np.prod(shape) - 3).astype(dtype).reshape(shape)
    data = idx(array, code)
    read = datasets.read_idx(write(tmp_path / "file", gzip.compress(data) if zipped else data))
    assert read.dtype == np.dtype(dtype)
    assert read.dtype.isnative
    assert read.flags.writeable
    assert np.array_equal(read, array)


GOOD = idx(IMAGES)
BAD_IDX = {
    "empty": (b"", "not an IDX file"),
    "magic": (b"PK\3\4" + GOOD[4:], "not an IDX file"),
    "type": (b"\0\0\x0a\3" + GOOD[4:], "data type 0x0a"),
    "no dimensions": (b"\0\0\x08\0" + GOOD[4:], "1 to 8 IDX dimensions, got 0"),
    "255 dimensions": (b"\0\0\x08\xff" + GOOD[4:], "1 to 8 IDX dimensions, got 255"),
    "header ends": (GOOD[:9], "ends within its header"),
    "truncated": (GOOD[:-1], "3 x 2 x 2 uint8, 12 bytes of data, but there are only 11"),
    "too long": (GOOD + b"\0", "12 bytes of data, but there are more"),
    "huge": (GOOD[:4] + b"\xff" * 12 + GOOD[16:], "but there are only 12"),
    "huge and none": (b"\0\0\x08\x08" + b"\0" * 4 + b"\xff" * 28, "shape"),
    "huge and 8": (b"\0\0\x0e\x08" + b"\xff" * 32 + GOOD, "but there are only 28"),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("data", "message"), BAD_IDX.values(), ids=BAD_IDX)
def test_bad_idx(tmp_path: Path, data: bytes, message: str, zipped: bool) -> None:
    path = write(tmp_path / "bad-idx", gzip.compress(data) if zipped else data)
    with pytest.raises(ValueError, match=message) as caught:
        datasets.read_idx(path)
    assert str(path) in str(caught.value)


def test_every_truncation_and_flip_of_a_gzipped_idx(tmp_path: Path) -> None:
    whole = gzip.compress(GOOD, mtime=0)
    for end in range(len(whole)):
        with pytest.raises(ValueError, match="file"):
            datasets.read_idx(write(tmp_path / "file", whole[:end]))
    for i in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[i // 8] ^= 1 << i % 8
        read = refused_or(datasets.read_idx, write(tmp_path / "file", bytes(flipped)))
        assert read is None or np.array_equal(read, IMAGES)  # gzip's time stamp means nothing


def test_a_header_takes_no_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "huge", gzip.compress(GOOD[:4] + b"\xff" * 12 + b"data"))
    tracemalloc.start()
    with pytest.raises(ValueError, match="only 4"):
        datasets.read_idx(path)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def folder(path: Path, dot: str = "-", end: str = "", changed: dict[str, NDArray[Any]] | None = None) -> Path:
    arrays = {
        "train-images": IMAGES,
        "train-labels": LABELS,
        "t10k-images": IMAGES[:2],
        "t10k-labels": LABELS[:2],
    } | (changed or {})
    for name, array in arrays.items():
        data = idx(array)
        kind = "idx3-ubyte" if "images" in name else "idx1-ubyte"
        write(path / f"{name}{dot}{kind}{end}", gzip.compress(data) if end else data)
    return path


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("dot", ["-", "."])
def test_idx_folder(tmp_path: Path, dot: str, end: str) -> None:
    train, validation, test = datasets.load_idx_folder(folder(tmp_path, dot, end))
    assert validation is None
    assert test is not None
    assert np.array_equal(train[0], IMAGES)
    assert train[1].tolist() == [2, 0, 1]
    assert test[0].shape == (2, 2, 2)
    assert test[1].dtype == np.int64


def test_idx_folder_names_the_missing_file(tmp_path: Path) -> None:
    (folder(tmp_path) / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte"):
        datasets.load_idx_folder(tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train-labels": LABELS[:2]}, "3 samples in train-images, but 2 in train-labels"),
        ({"t10k-images": np.zeros((2, 3, 3), np.uint8)}, r"\(2, 2\), test images \(3, 3\)"),
        ({"train-labels": IMAGES}, "expected a row of whole numbers"),
        ({"train-images": LABELS}, "expected images"),
        ({"t10k-images": IMAGES[:0], "t10k-labels": LABELS[:0]}, "expected samples"),
    ],
)
def test_idx_folder_whose_files_disagree(tmp_path: Path, changed: dict[str, NDArray[Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        datasets.load_idx_folder(folder(tmp_path, changed=changed))


# ---- NPZ

X, Y = np.arange(12.0).reshape(6, 2), np.array([0, 1, 0, 1, 0, 1])


def test_npz_whole(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, X=X, y=Y, note="ignored")
    train, validation, test = datasets.load_npz(path)
    assert np.array_equal(train[0], X)
    assert np.array_equal(train[1], Y)
    assert validation is None
    assert test is None


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_in_parts(tmp_path: Path, save: Any) -> None:
    path = tmp_path / "data.npz"
    parts = {"x_train": np.asfortranarray(X), "y_train": Y, "x_val": X[:2].astype(">f4")}
    save(path, **parts, y_val=Y[:2], x_test=X[:1], y_test=np.array(["a"]))
    train, validation, test = datasets.load_npz(path)
    assert validation is not None
    assert test is not None
    assert np.array_equal(train[0], X)
    assert validation[0].dtype == np.float32
    assert np.array_equal(validation[0], X[:2])
    assert test[1].tolist() == ["a"]


def test_npz_labels_of_bytes_are_strings(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, X=X[:2], y=np.array(["größe".encode(), b"b"]))
    labels = datasets.load_npz(path).train[1]
    assert labels.dtype.kind == "U" and labels.tolist() == ["größe", "b"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": X}, "expected the arrays X, y or x_train"),
        ({"X": X}, "found x"),
        ({"X": X, "y": Y, "x_train": X, "y_train": Y}, "expected the arrays X, y or"),
        ({"x_train": X, "y_train": Y, "x_test": X}, "y_test is missing"),
        ({"X": X, "y": Y[:5]}, "6 samples in x, but 5 in y"),
        ({"X": X[:0], "y": Y[:0]}, "expected samples"),
        ({"X": np.float64(1), "y": Y}, "expected samples, got shape"),
        ({"X": X.astype(str), "y": Y}, "expected real numbers, got <U"),
        ({"X": X + 1j, "y": Y}, "expected real numbers, got complex128"),
        ({"X": X.astype(object), "y": Y}, "Python objects"),
        ({"X": X, "y": Y.astype(object)}, "Python objects"),
        ({"X": X, "y": Y * 1j}, "expected numbers or strings"),
        ({"X": X, "y": np.array([b"\xff"] * 6)}, r"y: expected UTF-8 text, got b'\\xff'"),
        (
            {"x_train": X, "y_train": Y, "x_test": X[:, :1], "y_test": Y},
            r"x_test are \(1,\), those for training \(2,\)",
        ),
    ],
)
def test_bad_npz(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        datasets.load_npz(path)
    assert "bad.npz" in str(caught.value)


def npz_with(member: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("X.npy", member)
        archive.writestr("y.npy", b"")
    return buffer.getvalue()


def npy(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + b"data"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a zip",
        npz_with(b""),
        npz_with(b"garbage"),
        npz_with(npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}\n")),
        npz_with(npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}\n")),
        npz_with(npy("{'descr': '|i1', 'fortran_order': False, 'shape': (-2, -2)}\n")),
        npz_with(npy("{'descr': '<f8', 'fortran_order': False, 'shape': (0, 1" + "0" * 30 + ")}\n")),
        npz_with(npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n")),
        npz_with(npy("__import__('os')\n")),
        npz_with(npy("{'descr': (), 'fortran_order': False, 'shape': (4,)}\n")),
        npz_with(npy("{'descr': '|i1', 'fortran_order': False, 'shape': (True, 4)}\n")),
        npz_with(npy("{1: 2, 'a': 3}\n")),
        npz_with(npy("[" * 100)),
        npz_with(npy("-" * 9000 + "1")),
        npz_with(b"\x93NUMPY\x09\x00rest"),
    ],
)
def test_damaged_npz(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ValueError, match=r"bad\.npz"):
        datasets.load_npz(write(tmp_path / "bad.npz", data))


def test_every_truncation_of_an_npz(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, X=X, y=Y)
    whole = path.read_bytes()
    for end in range(len(whole)):
        with pytest.raises(ValueError, match=r"bad\.npz"):
            datasets.load_npz(write(tmp_path / "bad.npz", whole[:end]))


def test_flips_of_an_npz_never_change_the_data(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, X=X, y=Y)
    whole = path.read_bytes()
    for i in range(len(whole)):
        flipped = whole[:i] + bytes([whole[i] ^ 0x04]) + whole[i + 1 :]
        read = refused_or(datasets.load_npz, write(tmp_path / "bad.npz", flipped))
        assert read is None or all(map(np.array_equal, read.train, (X, Y)))


@pytest.mark.parametrize("read", [datasets.read_idx, datasets.load_npz])
def test_a_file_that_is_not_there(tmp_path: Path, read: Any) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nothing")


# ---- split


@settings(max_examples=100, deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    validation=st.sampled_from([0, 0.1, 0.25]),
    test=st.sampled_from([0, 0.2, 0.5]),
    seed=st.integers(0, 3),
)
def test_split_is_a_stratified_partition(counts: list[int], validation: float, test: float, seed: int) -> None:
    y = np.random.default_rng(9).permutation(np.repeat(np.arange(len(counts)), counts))
    n = len(y)
    x = np.arange(n)
    sizes = round(validation * n), round(test * n)
    feasible = sum(sizes) <= n - len(counts) and all(
        size or not fraction for size, fraction in zip(sizes, (validation, test), strict=True)
    )
    if not feasible:
        with pytest.raises(ValueError, match="too few"):
            datasets.split(x, y, validation=validation, test=test, seed=seed)
        return
    parts = datasets.split(x, y, validation=validation, test=test, seed=seed)
    given_parts = [part for part in parts if part is not None]
    assert sorted(np.concatenate([part[0] for part in given_parts]).tolist()) == x.tolist()
    for rows, labels in given_parts:
        assert np.array_equal(y[rows], labels)
        assert np.all(np.diff(rows) > 0)
    assert set(parts.train[1]) == set(range(len(counts)))
    for part, size in zip((parts.validation, parts.test), sizes, strict=True):
        assert (0 if part is None else len(part[1])) == size
    if parts.test is not None:
        share = np.array(counts) - 1.0
        share *= sizes[1] / share.sum()
        assert np.all(np.abs(np.bincount(parts.test[1], minlength=len(counts)) - share) < 1)


def test_split_repeats_with_its_seed() -> None:
    x, y = datasets.load_digits()
    first, again, other = (datasets.split(x, y, seed=seed) for seed in (0, 0, 1))
    assert first.test is not None
    assert again.test is not None
    assert other.test is not None
    assert np.array_equal(first.test[0], again.test[0])
    assert not np.array_equal(first.test[0], other.test[0])


def test_split_takes_strings_and_real_targets() -> None:
    x = np.arange(20)
    train, _, test = datasets.split(x, np.array(["a", "b"] * 10), validation=0)
    assert test is not None
    assert sorted(test[1]) == ["a", "a", "b", "b"]
    assert len(train[0]) == 16
    _, validation, test = datasets.split(x, np.linspace(0, 1, 20), validation=0.1, test=0.25)
    assert validation is not None
    assert test is not None
    assert (len(validation[1]), len(test[1])) == (2, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"test": 1.0}, "test: expected a fraction"),
        ({"test": float("nan")}, "test: expected a fraction"),
        ({"validation": -0.1}, "validation: expected a fraction"),
        ({"test": 0.01}, "too few"),
        ({"test": 0.5, "validation": 0.5}, "too few"),
    ],
)
def test_split_refuses(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        datasets.split(X, Y, **arguments)  # type: ignore[arg-type]


def test_split_refuses_lengths_that_differ() -> None:
    with pytest.raises(ValueError, match="6 samples in x, but 5 in y"):
        datasets.split(X, Y[:5])
