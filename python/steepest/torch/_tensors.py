"""Which of PyTorch's tensors the kernels can step, and how they lie in memory."""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from steepest import _core

WIDE = (torch.float32, torch.float64)
NARROW = (torch.bfloat16, torch.float16)  # stepped in float32


@functools.cache
def functions() -> list[int]:
    """The addresses of what is used of PyTorch's C interface."""
    file = {"win32": "torch_cpu.dll", "darwin": "libtorch_cpu.dylib"}.get(sys.platform, "libtorch_cpu.so")
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / file))
    looks = ("device_type", "layout", "dtype", "data_ptr", "dim", "sizes", "strides")
    names = ("delete_tensor_object", *(f"get_{name}" for name in looks))
    return [ctypes.cast(library[f"aoti_torch_{name}"], ctypes.c_void_p).value or 0 for name in names]


def check_tensor(name: str, x: Any) -> None:
    """Refuses what the kernels cannot step."""
    remedy = ""
    if x.layout != torch.strided:
        what = f"a {str(x.layout).removeprefix('torch.')} one"
        remedy = "; make it dense (Embedding(sparse=False), x.to_dense()), or use torch.optim.SparseAdam"
    elif x.device.type != "cpu":
        what, remedy = f"one on {x.device}", "; use torch.optim there"
    elif x.dtype not in WIDE + NARROW:
        what = str(x.dtype)
    elif torch.utils._python_dispatch.is_traceable_wrapper_subclass(x):
        what = type(x).__name__
    else:
        return
    raise TypeError(f"{name}: expected a dense floating-point tensor on the CPU, got {what}{remedy}")


def lies_as(target: Any, x: Any, dtype: Any) -> bool:
    fits = x.dtype == dtype and x.device == target.device and x.layout == torch.strided
    return fits and x.stride() == target.stride() and not x.is_neg()


def laid_out_as(target: Any, x: Any, dtype: Any = None) -> Any:
    """x with the strides, device and (or that given) dtype of target, itself if it has them."""
    dtype = dtype or target.dtype
    return x if lies_as(target, x, dtype) else torch.empty_like(target, dtype=dtype).copy_(x)


def filled_like(target: Any, value: float, dtype: Any) -> Any:
    """State in memory of NumPy's, which asks for huge pages: a step over large arrays takes a tenth less."""
    place = target.data_ptr() % 64 if dtype == target.dtype else 0
    flat = torch.from_numpy(_core._zeros(target.numel(), np.dtype(f"u{dtype.itemsize}"), place)).view(dtype)
    return (flat.fill_(value) if value else flat).as_strided(target.shape, target.stride())


def flat(x: Any) -> Any:
    """The elements of a dense tensor in the order of memory."""
    return x.detach().as_strided((x.numel(),), (1,)).numpy()


def is_dense(x: Any) -> bool:
    return bool(torch.empty_like(x, device="meta").stride() == x.stride())


def overlaps_itself(x: Any) -> bool:
    """Whether an element of x may lie where another one does."""
    span: int = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1 and stride < span:
            return bool(x.numel())
        span += (size - 1) * stride
    return False


def span_of(x: Any) -> tuple[int, int]:
    """The addresses between which x, which is not empty, has its elements."""
    elements = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + elements * x.itemsize


def share_memory(x: Any, y: Any) -> bool:
    """Whether an element of one lies where one of the other does."""
    return bool(np.shares_memory(_memory(x), _memory(y)))


def _memory(x: Any) -> Any:
    strides = tuple(stride * x.itemsize for stride in x.stride())
    described = {"data": (x.data_ptr(), False), "shape": tuple(x.shape), "strides": strides}
    return np.asarray(SimpleNamespace(__array_interface__={**described, "typestr": f"|V{x.itemsize}", "version": 3}))
