"""Data to train on: the embedded digits, readers for IDX, CSV and NPZ files, and a stratified split.

Every reader returns plain NumPy arrays and loads no pickles. A file that is not what it claims to
be is refused with a `ValueError` that names the file and what is wrong with it.
"""

from __future__ import annotations

import gzip
import lzma
import math
import os
import struct
import tokenize
import zipfile
import zlib
from importlib import resources
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steepest._csv import load_csv

__all__ = ["Splits", "load_csv", "load_digits", "load_idx_folder", "load_npz", "npz_inputs", "read_idx", "split"]

Array: TypeAlias = NDArray[Any]
Pair: TypeAlias = tuple[Array, Array]
PathLike: TypeAlias = str | os.PathLike[str]
DType: TypeAlias = np.dtype[Any]
Order: TypeAlias = Literal["C", "F"]

_IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_NPZ_NAMES = {f"{letter}{end}" for letter in "xy" for end in ("", "_train", "_val", "_test")}
_CHUNK = 1 << 20
_UNREADABLE = (
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
    lzma.LZMAError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


class Splits(NamedTuple):
    """Pairs `(x, y)` for training, validation and test; `None` where a source has no such part."""

    train: Pair
    validation: Pair | None = None
    test: Pair | None = None


def load_digits() -> Pair:
    """The 1,797 handwritten digits of 8 x 8 pixels that are embedded in the package.

    Returns `x`, float32 (1797, 64), the pixels' 17 grey levels scaled to 0..1, and `y`, int64
    (1797,), the digits 0..9 (174 to 183 of each).

    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository, 1998, https://doi.org/10.24432/C50P49, CC BY 4.0; its test set, as scikit-learn
    distributes it.

    >>> x, y = load_digits()
    >>> x.shape, y[:10].tolist()
    ((1797, 64), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    with (
        (resources.files("steepest") / "data" / "digits.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as arrays,
    ):
        x = arrays["images"].reshape(-1, 64).astype(np.float32) / np.float32(16)
        return x, arrays["labels"].astype(np.int64)


def split(
    x: ArrayLike,
    y: ArrayLike,
    *,
    validation: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
) -> Splits:
    """Split samples at random into training, validation and test parts.

    Integer, boolean and string `y` of one dimension are classes, and every class goes into the
    parts in proportion (stratified); at least one sample of each class stays in training.
    Any other `y` is split without strata. Each part keeps the samples' order.

    `x` is (samples, ...), `y` (samples, ...). `validation` and `test` are fractions of all samples,
    rounded to the nearest count; at 0 that part is `None`. The same seed gives the same split.

    Raises `ValueError` if the lengths differ, a fraction is out of range, or too few samples would
    be left for training or a part.

    >>> x, y = load_digits()
    >>> train, validation, test = split(x, y, seed=0)
    >>> len(train[1]), len(validation[1]), len(test[1])
    (1258, 180, 359)
    """
    x, y = np.asarray(x), np.asarray(y)
    n = _samples("split", x, y)
    for name, fraction in (("validation", validation), ("test", test)):
        if not 0 <= fraction < 1:
            raise ValueError(f"{name}: expected a fraction from 0 to below 1, got {fraction!r}")
    sizes = {"test": round(test * n), "validation": round(validation * n)}
    labelled = y.ndim == 1 and y.dtype.kind in "biuSU"
    _, strata = np.unique(y, return_inverse=True) if labelled else (None, np.zeros(n, np.intp))
    counts = np.bincount(strata)
    too_small = (test and not sizes["test"]) or (validation and not sizes["validation"])
    if too_small or sum(sizes.values()) > n - len(counts):
        raise ValueError(
            f"split: too few samples for validation={validation} and test={test}, got {n}"
            f"{f' (classes: {len(counts)})' * labelled}; give more samples or smaller parts"
        )

    rng = np.random.default_rng(seed)
    left = [rng.permutation(np.flatnonzero(strata == c)) for c in range(len(counts))]
    parts = {}
    for name, size in sizes.items():
        taken = _apportion(np.array([len(indices) - 1 for indices in left]), size)
        parts[name] = [indices[:k] for indices, k in zip(left, taken, strict=True)]
        left = [indices[k:] for indices, k in zip(left, taken, strict=True)]
    parts["train"] = left

    def take(name: str) -> Pair:
        rows = np.sort(np.concatenate(parts[name]))
        return x[rows], y[rows]

    return Splits(
        take("train"),
        take("validation") if sizes["validation"] else None,
        take("test") if sizes["test"] else None,
    )


def _apportion(weights: NDArray[np.intp], total: int) -> NDArray[np.intp]:
    """Whole numbers that sum to `total`, in proportion to `weights` (largest remainders)."""
    shares = weights * total
    whole = shares // max(weights.sum(), 1)
    remainders = shares - whole * weights.sum()
    whole[np.argsort(-remainders, kind="stable")[: total - whole.sum()]] += 1
    return np.asarray(whole, np.intp)


def read_idx(path: PathLike) -> Array:
    """Read an IDX file (MNIST's format), plain or gzipped; which of the two, its first bytes tell.

    Returns the array in native byte order, writable. Memory is taken as data arrives, never by the
    size that the header claims.

    Raises `ValueError` if the magic number, data type, dimensions or length are wrong, and
    `OSError` if the file cannot be opened.

    Format: http://yann.lecun.com/exdb/mnist/
    """
    path = Path(path)
    with path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        try:
            return _read_idx(path, gzip.open(raw) if zipped else raw)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip file ({error})") from None


def _read_idx(path: Path, file: IO[bytes] | gzip.GzipFile) -> Array:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise ValueError(f"{path}: not an IDX file: expected it to start with 00 00, got {magic!r}")
    if magic[2] not in _IDX_DTYPES:
        known = ", ".join(f"{code:#04x}" for code in _IDX_DTYPES)
        raise ValueError(f"{path}: IDX data type {magic[2]:#04x} is none of {known}")
    dtype, ndim = np.dtype(_IDX_DTYPES[magic[2]]), magic[3]
    if not 1 <= ndim <= 8:
        raise ValueError(f"{path}: expected 1 to 8 IDX dimensions, got {ndim}")
    header = file.read(4 * ndim)
    if len(header) < 4 * ndim:
        raise ValueError(f"{path}: ends within its header")
    shape = struct.unpack(f">{ndim}I", header)
    return _read_array(file, shape, dtype, str(path))


def load_idx_folder(folder: PathLike) -> Splits:
    """Read MNIST's four files, or a data set in their format (Fashion-MNIST, ...), from a folder.

    The files are `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same with `t10k` for
    the test set; `train-images.idx3-ubyte` and a `.gz` at the end are understood too.

    Returns `Splits` without a validation part: images as stored (MNIST: uint8 (n, 28, 28)),
    labels int64 (n,).

    Raises `FileNotFoundError` that names a missing file, and `ValueError` for a damaged one or
    files that do not belong together.
    """
    folder = Path(folder)
    train, test = _idx_pair(folder, "train"), _idx_pair(folder, "t10k")
    if train[0].shape[1:] != test[0].shape[1:]:
        raise ValueError(f"{folder}: training images are {train[0].shape[1:]}, test images {test[0].shape[1:]}")
    return Splits(train, None, test)


def _idx_pair(folder: Path, part: str) -> Pair:
    image_path, label_path = (
        _idx_path(folder, f"{part}-{kind}", f"idx{ndim}-ubyte") for kind, ndim in (("images", 3), ("labels", 1))
    )
    images, labels = read_idx(image_path), read_idx(label_path)
    if images.ndim < 2:
        raise ValueError(f"{image_path}: expected images, got an array of shape {images.shape}")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"{label_path}: expected a row of whole numbers, got {labels.dtype} of shape {labels.shape}")
    _samples(str(folder), images, labels, f"{part}-images", f"{part}-labels")
    return images, labels.astype(np.int64)


def _idx_path(folder: Path, stem: str, kind: str) -> Path:
    names = [f"{stem}{dot}{kind}{end}" for end in ("", ".gz") for dot in "-."]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder}: no {names[0]} (or {', '.join(names[1:])})")


def load_npz(path: PathLike) -> Splits:
    """Read a data set from an `.npz` file: arrays `X, y`, or `x_train, y_train` and, if there are,
    `x_val, y_val` and `x_test, y_test`. Capital and small letters count the same.

    `x` is (samples, features...), real numbers; `y` is (samples,), or (samples, ...). They are
    returned as stored, but for bytes in `y`, which become strings: `X, y` come back as the training part.

    Raises `ValueError` if the file is damaged, an array is missing, without its partner, of another
    length than its partner or of another shape than its counterparts, is not numeric, or holds
    Python objects (unpickling those would run code); `OSError` if it cannot be opened.
    """
    path = Path(path)
    arrays = _read_npz(path)
    whole, parts = {"x", "y"} & arrays.keys(), {"x_train", "y_train"} & arrays.keys()
    if (len(whole), len(parts)) not in ((2, 0), (0, 2)):
        raise ValueError(
            f"{path}: expected the arrays X, y or x_train, y_train [x_val, y_val] [x_test, y_test],"
            f" found {', '.join(sorted(arrays)) or 'none of them'}"
        )
    train, validation, test = (_npz_pair(path, arrays, end) for end in ("" if whole else "_train", "_val", "_test"))
    assert train is not None
    for name, part in (("x_val", validation), ("x_test", test)):
        if part is not None and part[0].shape[1:] != train[0].shape[1:]:
            raise ValueError(
                f"{path}: samples of {name} are {part[0].shape[1:]}, those for training {train[0].shape[1:]}"
            )
    return Splits(train, validation, test)


def npz_inputs(path: PathLike) -> Array:
    """The samples alone of an `.npz` file as `load_npz` takes it: `x`, or `x_test`, which needs no `y`.

    Raises as `load_npz` does.
    """
    path = Path(path)
    arrays = _read_npz(path)
    for name in ("x", "x_test"):
        if name in arrays:
            return _real_numbers(path, name, arrays[name])
    raise ValueError(f"{path}: expected the array X or x_test, found {', '.join(sorted(arrays)) or 'neither'}")


def _real_numbers(path: Path, name: str, x: Array) -> Array:
    if x.ndim == 0 or len(x) == 0:
        raise ValueError(f"{path}: {name}: expected samples, got shape {x.shape}")
    if x.dtype.kind not in "buif":
        raise ValueError(f"{path}: {name}: expected real numbers, got {x.dtype}")
    return x


def _npz_pair(path: Path, arrays: dict[str, Array], end: str) -> Pair | None:
    names = f"x{end}", f"y{end}"
    missing = [name for name in names if name not in arrays]
    if len(missing) == 2:
        return None
    if missing:
        raise ValueError(f"{path}: the array {missing[0]} is missing")
    x, y = (arrays[name] for name in names)
    _samples(str(path), x, y, *names)
    _real_numbers(path, names[0], x)
    if y.dtype.kind not in "buifSU":
        raise ValueError(f"{path}: {names[1]}: expected numbers or strings, got {y.dtype}")
    try:
        return x, np.char.decode(y, "utf-8") if y.dtype.kind == "S" else y
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: {names[1]}: expected UTF-8 text, got {error.object!r}") from None


def _read_npz(path: Path) -> dict[str, Array]:
    """The arrays of an archive that have one of our names, in small letters."""
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{path}: not an .npz file (write one with numpy.savez)")
        try:
            with zipfile.ZipFile(file) as archive:
                return {
                    key: _read_member(archive, name)
                    for name in archive.namelist()
                    if (key := name.removesuffix(".npy").lower()) in _NPZ_NAMES
                }
        except _UNREADABLE as error:
            raise ValueError(f"{path}: {error}") from None


def _read_member(archive: zipfile.ZipFile, name: str) -> Array:
    """One array of an archive, of numbers or strings."""
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{name}: .npy version {version} is not 1.0 or 2.0")
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        try:
            shape, fortran, dtype = read_header(file)
        except (IndexError, MemoryError, SyntaxError, TypeError, tokenize.TokenError) as error:  # Python's parser
            raise ValueError(f"{name}: malformed header: {error!r}") from None
        if dtype.hasobject:
            raise ValueError(f"{name}: holds Python objects, which are never loaded; save numbers")
        return _read_array(file, shape, dtype, name, "F" if fortran else "C")


def _read_array(
    file: IO[bytes] | gzip.GzipFile,
    shape: tuple[int, ...],
    dtype: DType,
    name: str,
    order: Order = "C",
) -> Array:
    """The array that is left in `file`; its claimed size is believed once the bytes have come."""
    expected = math.prod(shape) * dtype.itemsize
    data = bytearray()
    while len(data) <= expected and (chunk := file.read(_CHUNK)):
        data += chunk
    if len(data) != expected:
        came = f"only {len(data):,}" if len(data) < expected else "more"
        raise ValueError(
            f"{name}: its header says {' x '.join(map(str, shape))} {dtype.name}, "
            f"{expected:,} bytes of data, but there are {came}"
        )
    try:
        values: Array = np.frombuffer(data, dtype).reshape(shape, order=order)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: shape {shape}: {error}") from None
    return values if dtype.isnative else values.astype(dtype.newbyteorder("="))


def _samples(where: str, x: Array, y: Array, x_name: str = "x", y_name: str = "y") -> int:
    for name, array in ((x_name, x), (y_name, y)):
        if array.ndim == 0 or len(array) == 0:
            raise ValueError(f"{where}: {name}: expected samples, got shape {array.shape}")
    if len(x) != len(y):
        raise ValueError(f"{where}: {len(x)} samples in {x_name}, but {len(y)} in {y_name}")
    return len(x)
