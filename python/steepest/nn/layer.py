"""What a layer is."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from steepest.nn.init import Initializer

__all__ = ["Array", "Buffers", "Layer", "Parameter", "Shape", "well_formed"]

Array = npt.NDArray[Any]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Parameter:
    """A parameter's shape, its initial values, and whether weight decay applies to it."""

    shape: Shape
    init: Initializer
    decay: bool = True


def well_formed(x: Array, dtype: np.dtype[Any]) -> bool:
    """Whether kernels take `x` as it is: of this dtype, C-contiguous, aligned, native."""
    flags = x.flags
    return x.dtype == dtype and flags.c_contiguous and flags.aligned and dtype.isnative


class Buffers:
    """Arrays kept from call to call, by name; a smaller batch gets the leading rows."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._dtype = dtype
        self._kept: dict[str, Array] = {}

    def __call__(self, name: str, shape: Shape, dtype: npt.DTypeLike | None = None, fill: float | None = None) -> Array:
        """An array of that shape, uninitialised or full of `fill`; `dtype` None is the one given at the start."""
        kept = self._kept.get(name)
        if kept is not None:
            if kept.shape == shape:
                return kept
            if kept.shape[1:] == shape[1:] and kept.shape[0] > shape[0]:
                return kept[: shape[0]]
        self._kept[name] = kept = np.empty(shape, dtype or self._dtype)
        if fill is not None:
            kept.fill(fill)
        return kept


def _plain(value: Any) -> Any:
    if isinstance(value, functools.partial):
        return {"partial": _plain(value.func), "args": list(value.args), "keywords": value.keywords}
    return getattr(value, "__name__", type(value).__name__) if callable(value) else value


class Layer:
    """One step of a `Sequential` model; a layer of one's own overrides these three methods.

    `build(input_shape)` declares the parameters and returns the output's shape (shapes are without
    the batch axis); `forward(x, train)` returns the output; `backward(grad)` fills `self.grads` and
    returns the gradient of the input.

    The model provides `self.params[name]` and `self.grads[name]` (views of its two flat arrays),
    `self.dtype`, `self.rng` (seeded, the layer's own), `self.needs_input_gradient` (if False,
    `backward` may return None) and `self.buffer(name, shape)` (an array to work in). `forward` must
    not write into `x`; `backward` may write into `grad`, and must overwrite all of its gradients,
    not add to them.
    Constructor arguments are kept as attributes of the same name: `config()` reads them there.

    >>> import numpy as np
    >>> from steepest import nn
    >>> class Scale(nn.Layer):
    ...     def build(self, input_shape):
    ...         self.declare("factor", input_shape, lambda rng, shape: np.ones(shape), decay=False)
    ...         return input_shape
    ...
    ...     def forward(self, x, train):
    ...         self.x = x
    ...         return np.multiply(x, self.params["factor"], out=self.buffer("y", x.shape))
    ...
    ...     def backward(self, grad):
    ...         np.einsum("ni,ni->i", grad, self.x, out=self.grads["factor"])
    ...         return np.multiply(grad, self.params["factor"], out=grad)
    >>> nn.Sequential([Scale()], input_shape=3).forward(np.float32([[1, 2, 3]]))
    array([[1., 2., 3.]], dtype=float32)
    """

    takes_activation = False  # whether `forward` applies `self.activation` in the same pass
    activation: Any = None  # the model sets it if an activation follows

    dtype: np.dtype[Any]
    rng: np.random.Generator
    params: dict[str, Array]
    grads: dict[str, Array]
    declared: dict[str, Parameter]
    needs_input_gradient: bool
    buffer: Buffers
    _own: tuple[str, ...]  # the attributes that the constructor set

    def build(self, input_shape: Shape) -> Shape:
        """Declares the parameters and returns the output's shape."""
        return input_shape

    def forward(self, x: Array, train: bool) -> Array:
        """The output of the layer for a batch `x` of shape (batch, *input_shape)."""
        raise NotImplementedError(f"{type(self).__name__} has no forward(x, train)")

    def backward(self, grad: Array) -> Array | None:
        """Turns the gradient of the last output into that of its input; fills `self.grads`."""
        raise NotImplementedError(f"{type(self).__name__} has no backward(grad)")

    def declare(self, name: str, shape: Shape, init: Initializer, *, decay: bool = True) -> None:
        """Declares a parameter; to be called in `build`. Biases and the like: `decay=False`."""
        self.declared[name] = Parameter(shape, init, decay)

    def join(self, dtype: np.dtype[Any], rng: np.random.Generator, input_shape: Shape) -> Shape:
        """Makes the layer part of a model (the model calls it) and returns the output's shape."""
        if hasattr(self, "_own"):
            raise ValueError(f"layer {self!r} is part of a model already; make another, or copy.deepcopy it")
        self._own = tuple(vars(self))
        self.dtype, self.rng = dtype, rng
        self.params, self.grads, self.declared = {}, {}, {}
        self.buffer = Buffers(dtype)
        self.needs_input_gradient = True
        return self.build(input_shape)

    def leave(self) -> None:
        """Undoes `join`."""
        for name in vars(self).keys() - {*self._own}:
            delattr(self, name)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments by name, as plain data.

        Functions stand as their names, a `functools.partial` as that of its function with its arguments.
        """
        names = [name for name in inspect.signature(type(self)).parameters if hasattr(self, name)]
        values = {name: getattr(self, name) for name in names}
        return {name: _plain(value) for name, value in values.items()}

    def __getstate__(self) -> dict[str, Any]:
        """The layer without its model: what the constructor set, and nothing since."""
        return {name: vars(self)[name] for name in getattr(self, "_own", vars(self))}

    def __repr__(self) -> str:
        parameters = inspect.signature(type(self)).parameters
        shown = [f"{k}={v!r}" for k, v in self.config().items() if v != parameters[k].default]
        return f"{type(self).__name__}({', '.join(shown)})"
