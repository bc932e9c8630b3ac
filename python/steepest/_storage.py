"""Plain data and arrays in one checksummed safetensors file, written atomically.

It is a safetensors file like any other. Its metadata has the one entry "steepest": a JSON text that
begins with the SHA-256 of the whole file, taken with zeros in the checksum's own place.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["read", "write"]

Tensors = dict[str, NDArray[Any]]

ZEROS = b"0" * 64
MARK = rb'"steepest":"{\"sha256\":\"'  # JSON in JSON; nothing else in a header can look like this
FORMAT = 1
DTYPES = frozenset("?bBhHiIlLqQefdF")
TAGS = frozenset(("__array__", "__dict__", "__float__", "__text__", "__tuple__"))
SIGNATURES = {b"": "an empty file", b"\x80": "a pickle", b"P": "a zip archive (.npz, torch.save)"}


def write(path: str, document: Mapping[str, Any]) -> None:
    """Replaces `path`, at once or not at all, by a file with `document`.

    The document may have numbers, strings, None, lists, tuples, mappings, and arrays of numbers or
    strings; TypeError for anything else. OSError leaves what was there, and no temporary file.
    """
    from safetensors.numpy import save

    tensors: Tensors = {}
    plain = {name: _encoded(value, name, tensors) for name, value in document.items()}
    entry = {"sha256": ZEROS.decode(), "format": FORMAT, **plain}
    text = json.dumps(entry, allow_nan=False, separators=(",", ":"))
    data = save(tensors, {"steepest": text})
    at = data.index(MARK) + len(MARK)
    view = memoryview(data)
    replace(path, (view[:at], memoryview(_checksum(view, at)), view[at + len(ZEROS) :]))


def read(path: str) -> dict[str, Any]:
    """The document in a file of `write`; ValueError for any other, and for a damaged one."""
    from safetensors.numpy import load

    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path}: expected a file, got a {'folder' if os.path.isdir(path) else 'device'}")
    data, at = _read(path)
    end = at + len(ZEROS)
    if data[at:end] != _checksum(memoryview(data), at):
        raise ValueError(f"{path}: damaged: its checksum does not match; restore it from a copy")
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    document = json.loads(header["__metadata__"]["steepest"])
    if document.pop("format") != FORMAT:
        raise ValueError(f"{path}: written by a newer version of steepest; upgrade to read it")
    del document["sha256"]
    tensors = load(data)
    return {name: _decoded(value, tensors) for name, value in document.items()}


def _read(path: str) -> tuple[bytes, int]:
    """The file, and where in it the checksum is; only as much of a foreign file is read as it takes."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = int.from_bytes(start, "little")
        header = file.read(length) if len(start) == 8 and length <= size - 8 else b""
        at = header.find(MARK)
        if at < 0:
            kind = SIGNATURES.get(start[:1], "a file that is cut short or of another kind")
            if header.startswith(b"{"):
                kind = "a safetensors file of another program"
            raise ValueError(f"{path}: expected a checkpoint that steepest.save wrote, got {kind}")
        return start + header + file.read(), 8 + at + len(MARK)


def _checksum(data: memoryview, at: int) -> bytes:
    digest = hashlib.sha256(data[:at])
    digest.update(ZEROS)
    digest.update(data[at + len(ZEROS) :])
    return digest.hexdigest().encode()


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """An OSError names the file, as that of a full disk does not by itself."""
    try:
        yield
    except OSError as error:
        error.filename = os.fspath(path)
        del error.filename2  # None would be shown as a name
        raise


def replace(path: str, parts: Iterable[memoryview]) -> None:
    target = os.path.realpath(path)  # what a link points to is replaced, not the link
    folder = os.path.dirname(target)
    temporary = os.path.join(folder, f".steepest-{os.urandom(8).hex()}.tmp")
    with naming(path):
        mode = _replaceable(path, target)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            _fill(descriptor, parts)
            if mode is not None:
                with contextlib.suppress(PermissionError):  # file systems without modes
                    os.chmod(temporary, mode)
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        if os.name == "posix":
            _flush_folder(folder)


def _replaceable(path: str, target: str) -> int | None:
    """The mode of the file that is there, if one is; refuses what `open(path, "wb")` would."""
    if not os.path.exists(target):
        return None
    if not os.path.isfile(target):
        raise ValueError(f"{path}: expected the name of a file, got that of a folder or a device")
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return stat.S_IMODE(os.stat(target).st_mode)


def _fill(descriptor: int, parts: Iterable[memoryview]) -> None:
    try:
        for part in parts:
            while part:
                part = part[os.write(descriptor, part) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(folder: str) -> None:
    """Makes the new name last; where the system cannot flush folders, nothing more can be done."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _encoded(value: Any, where: str, tensors: Tensors) -> Any:
    """`value` as JSON has it; what JSON has not, as a mapping with a tag; arrays go to `tensors`."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"__float__": str(float(value))}
    if isinstance(value, np.ndarray):
        return _encoded_array(value, where, tensors)
    if isinstance(value, list | tuple):
        items = [_encoded(item, f"{where}.{i}", tensors) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"__tuple__": items}
    if isinstance(value, Mapping):
        pairs = [(key, _encoded(item, f"{where}.{key}", tensors)) for key, item in value.items()]
        if all(isinstance(key, str) and key not in TAGS for key in value):
            return dict(pairs)
        return {"__dict__": [[_encoded(key, f"{where}: key", tensors), item] for key, item in pairs]}
    raise TypeError(f"{where}: expected plain data (numbers, strings, lists, mappings) or arrays, got {value!r:.80}")


def _encoded_array(array: NDArray[Any], where: str, tensors: Tensors) -> dict[str, Any]:
    if array.dtype.kind == "U":
        return {"__text__": [str(array.dtype.itemsize // 4), list(array.shape), array.ravel().tolist()]}
    if array.dtype.char not in DTYPES:
        raise TypeError(f"{where}: expected an array of numbers or strings, got dtype {array.dtype}")
    while where in tensors:  # "a.b" of {"a.b": ...} and of {"a": {"b": ...}}
        where += "_"
    # safetensors writes the memory as it lies.
    tensors[where] = np.asarray(array, array.dtype.newbyteorder("="), order="C")
    return {"__array__": where}


def _decoded(value: Any, tensors: Tensors) -> Any:
    def each(items: Iterable[Any]) -> list[Any]:
        return [_decoded(item, tensors) for item in items]

    if isinstance(value, list):
        return each(value)
    if not isinstance(value, dict):
        return value
    match value:
        case {"__array__": name}:
            return tensors[name]
        case {"__float__": text}:
            return float(text)
        case {"__text__": [width, shape, items]}:
            return np.array(items, f"<U{int(width)}").reshape(shape)
        case {"__tuple__": items}:
            return tuple(each(items))
        case {"__dict__": pairs}:
            return {_decoded(key, tensors): _decoded(item, tensors) for key, item in pairs}
    return dict(zip(value, each(value.values()), strict=True))
