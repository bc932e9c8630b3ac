"""A model: layers in a row, parameters in one flat array."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from steepest import _core, losses
from steepest._arguments import check_integer
from steepest.nn import activations, convolution, init, layers, pooling
from steepest.nn.activations import Activation
from steepest.nn.layer import Array, Buffers, Layer, Shape, well_formed

__all__ = ["Sequential"]

ALIGNMENT = 64  # bytes: a cache line, and the widest vector
MODULES = init, layers, activations, convolution, pooling


def _zeros(size: int, dtype: np.dtype[Any]) -> Array:
    """Zeros that start at a cache line, so that no run depends on what the allocator gave."""
    raw = np.zeros(size * dtype.itemsize + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size * dtype.itemsize].view(dtype)


def _shape(input_shape: int | Sequence[int]) -> Shape:
    shape = tuple(operator.index(n) for n in np.atleast_1d(input_shape))
    if not all(n > 0 for n in shape):
        raise ValueError(f"input_shape: expected positive integers, got {input_shape!r}")
    return shape


def _seed(seed: Any) -> int:
    number = check_integer("seed", seed)
    if number < 0:
        raise ValueError(f"seed: expected an integer >= 0, got {seed}")
    return number


class Sequential:
    """Layers applied one after the other; built at once, with seeded initial parameters.

    - `layers`: the layers, each its own object.
    - `input_shape`: the shape of one example, or its length.
    - `seed` (0): every layer draws from a generator of its own, made of the seed and its place.
    - `dtype` (float32, or float64): of parameters, activations and gradients. Batches of another
      number type are converted, value by value: bytes are not scaled.

    `params` and `grads` are the flat arrays: first everything with weight decay (the weights), then
    the rest (the biases), each in the order of the layers. They are never replaced, so an optimizer
    made of `param_groups()` or of `params` stays valid.

    TypeError for another dtype, or for what is not a `Layer`; ValueError for shapes that don't fit.

    >>> import numpy as np
    >>> import steepest as sp
    >>> from steepest import nn
    >>> model = nn.Sequential([nn.Dense(16), nn.ReLU(), nn.Dense(3)], input_shape=4, seed=1)
    >>> optimizer = sp.AdamW(model.param_groups(weight_decay=0.01))
    >>> logits = model.forward(np.ones((2, 4), np.float32), train=True)
    >>> loss, grad = sp.losses.softmax_cross_entropy(logits, np.array([0, 2]))
    >>> _ = model.backward(grad)
    >>> optimizer.step(model.gradients())
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        input_shape: int | Sequence[int],
        *,
        seed: int = 0,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self.layers = list(layers)
        self.input_shape = _shape(input_shape)
        self.seed = _seed(seed)
        self.dtype = np.dtype(dtype).newbyteorder("=")
        if self.dtype not in (np.float32, np.float64):
            raise TypeError(f"dtype: expected float32 or float64, got {self.dtype}")
        for layer in self.layers:
            if not isinstance(layer, Layer):
                raise TypeError(f"layers: expected instances of nn.Layer, got {layer!r}")
        free = [layer for layer in self.layers if not hasattr(layer, "_own")]
        try:
            self._assemble()
            for layer in self.layers:
                for name, parameter in layer.declared.items():
                    layer.params[name][...] = parameter.init(layer.rng, parameter.shape)
        except BaseException:
            for layer in free:
                if hasattr(layer, "_own"):
                    layer.leave()
            raise

    def _assemble(self) -> None:
        """Joins the layers and lays their parameters out."""
        self._buffer, self._has_run = Buffers(self.dtype), False
        self._shapes: list[Shape] = []
        shape = self.input_shape
        for index, layer in enumerate(self.layers):
            rng = np.random.default_rng([self.seed, index])
            shape = layer.join(self.dtype, rng, shape)
            self._shapes.append(shape)
        for before, layer in zip(self.layers, self.layers[1:], strict=False):
            if not before.takes_activation or not isinstance(layer, Activation):
                continue
            if type(layer).forward is Activation.forward:  # else it computes something of its own
                before.activation = layer
                layer.fused = True
        self.output_shape = shape
        self._lay_out()
        self.freeze(0)

    def _lay_out(self) -> None:
        sizes = [self._sizes(layer) for layer in self.layers]
        self._weights = sum(weights for weights, _ in sizes)
        total = self._weights + sum(biases for _, biases in sizes)
        self.params, self.grads = _zeros(total, self.dtype), _zeros(total, self.dtype)
        start = {True: 0, False: self._weights}
        for layer in self.layers:
            for name, p in layer.declared.items():
                part = slice(start[p.decay], start[p.decay] + math.prod(p.shape))
                start[p.decay] = part.stop
                layer.params[name] = self.params[part].reshape(p.shape)
                layer.grads[name] = self.grads[part].reshape(p.shape)

    @staticmethod
    def _sizes(layer: Layer) -> tuple[int, int]:
        """How many parameters with decay, how many without."""
        sizes = [(math.prod(p.shape), p.decay) for p in layer.declared.values()]
        return sum(n for n, decay in sizes if decay), sum(n for n, decay in sizes if not decay)

    def freeze(self, n: int) -> None:
        """Keeps the parameters of the first `n` layers as they are; make the optimizer afterwards.

        `param_groups()` and `gradients()` leave them out, and `backward` stops before them.
        ValueError unless 0 <= n <= number of layers.
        """
        if not 0 <= n <= len(self.layers):
            raise ValueError(f"n: expected 0 to {len(self.layers)} layers, got {n!r}")
        sizes = [self._sizes(layer) for layer in self.layers[:n]]
        self.frozen = n
        self._frozen_sizes = sum(w for w, _ in sizes), sum(b for _, b in sizes)
        trained = [i for i, layer in enumerate(self.layers) if i >= n and layer.declared]
        first = trained[0] if trained else len(self.layers)
        for index, layer in enumerate(self.layers):
            layer.needs_input_gradient = index > first
        self._backward = [layer.backward for layer in reversed(self.layers[first:])]
        self._chain, self._is_chained = self._make_chain(first), False

    def _make_chain(self, first: int) -> _core.Chain | None:
        """All layers compiled into one, if they are dense ones with their activations; from `first` on they train."""
        links, frozen = [], 0
        for index, layer in enumerate(self.layers):
            if isinstance(layer, Activation) and layer.fused:
                continue
            if type(layer) is not layers.Dense or layer.compiled is None:
                return None
            weight, dweight = layer.params["weight"], layer.grads["weight"]
            links.append((weight, layer.params.get("bias"), *layer.compiled, dweight, layer.grads.get("bias")))
            frozen += index < first
        if frozen == len(links):
            return None
        first_size, *sizes = (weight.size for weight, *_ in links)
        self._sparse_rows = layers.SMALL_WORK // max(sizes, default=1)
        self._chain_rows = min(self._sparse_rows, layers.SMALL_WORK // first_size)
        return _core.Chain(links, frozen)

    def _segments(self, flat: Array) -> tuple[Array, Array]:
        weights, biases = self._frozen_sizes
        return flat[weights : self._weights], flat[self._weights + biases :]

    def param_groups(self, weight_decay: float | None = None, **weight_options: Any) -> list[dict[str, Any]]:
        """Two parameter groups for an optimizer, each one flat array: the weights, the biases.

        `weight_decay` and further options (`l1`, `l2`) apply to the weights alone; None is the
        optimizer's default. Biases have none of them. An empty group is left out. ValueError if
        there is nothing to train.
        """
        weights, biases = self._segments(self.params)
        if weight_decay is not None:
            weight_options["weight_decay"] = weight_decay
        unpenalised = dict.fromkeys(["weight_decay", *weight_options], 0.0)
        groups = [{"params": weights, **weight_options}, {"params": biases, **unpenalised}]
        groups = [group for group in groups if group["params"].size]
        if not groups:
            raise ValueError("the model has nothing to train: no parameters, or all of them frozen")
        return groups

    def gradients(self) -> list[Array]:
        """The gradients that belong to `param_groups()`, as views of `grads`."""
        return [part for part in self._segments(self.grads) if part.size]

    def named_parameters(self) -> dict[str, Array]:
        """Views of all parameters by place and name: "0.weight", "0.bias", "2.weight", ..."""
        return {
            f"{index}.{name}": value for index, layer in enumerate(self.layers) for name, value in layer.params.items()
        }

    def forward(self, x: Array, train: bool = False) -> Array:
        """The outputs for a batch of shape (batch, *input_shape): an array the next call reuses.

        `train` switches layers such as `Dropout` on. A last axis of length 1 may be missing: grey
        images come as (batch, height, width) too. TypeError if `x` does not hold real numbers,
        ValueError for another shape.
        """
        if not isinstance(x, np.ndarray):
            raise TypeError(f"x: expected a numpy.ndarray, got {type(x).__name__}")
        if x.shape[1:] != self.input_shape or x.ndim == 0:
            x = self._with_channel(x)
        if not well_formed(x, self.dtype):
            x = self._converted("x", x)
        if self._chain is not None:
            rows = len(x)
            self._is_chained = rows <= self._chain_rows or (rows <= self._sparse_rows and _core.is_mostly_zero(x))
        if self._is_chained:
            return self._chain.forward(x)  # type: ignore[union-attr]
        for layer in self.layers:
            x = layer.forward(x, train)
        self._has_run = True
        return x

    def takes_sparse(self, rows: int) -> bool:
        """Whether `forward_sparse` takes so many rows: of dense layers alone, none of them large but the first."""
        return self._chain is not None and rows <= self._sparse_rows

    def forward_sparse(self, starts: Array, columns: Array, values: Array) -> Array:
        """The outputs for rows of which only what is not 0 is given, to the bits of `forward`'s.

        They are in CSR: row i has `values[starts[i]:starts[i + 1]]`, in the model's dtype, in these
        `columns` (int32), which ascend; `starts` is int64. ValueError unless all layers are dense ones
        with their activations.
        """
        if self._chain is None:
            raise ValueError("forward_sparse: expected a model of dense layers alone that trains; make the rows dense")
        outputs = self._chain.forward_sparse(starts, columns, values)
        self._is_chained = True
        return outputs

    def backpropagation(self, loss: Callable[..., Any], x: Array, y: Array) -> _core.Backpropagation | None:
        """A compiled call for what training on rows of `x` and `y` takes; None where model, loss or arrays allow none.

        Called with row numbers (int64) or a slice of neighbours, it returns the loss, the outputs and the targets,
        and has filled `grads` if the loss is finite: all to the bits of `forward`, `loss` (a function of
        `steepest.losses`, with its defaults) and `backward`. Where those should be called instead, for so many rows
        are better multiplied by NumPy, it returns None, these rows of `x` and those of `y`. With row numbers, the next
        call reuses the arrays. After `freeze`, make another.
        """
        own = Sequential.forward, Sequential.backward
        is_own = own == tuple(getattr(method, "__func__", None) for method in (self.forward, self.backward))
        if self._chain is None or not is_own or loss not in losses.COMPILED:
            return None
        if not (_is_plain(x) and _is_plain(y)) or x.shape[1:] != self.input_shape:
            return None
        self._is_chained = True  # for `backward`, until the next `forward`
        return _core.Backpropagation(self._chain, x, y, loss.__name__, self._chain_rows, self._sparse_rows)

    def _with_channel(self, x: Array) -> Array:
        if x.ndim and (*x.shape[1:], 1) == self.input_shape:
            return x[..., None]
        expected = ", ".join(["batch", *map(str, self.input_shape)])
        raise ValueError(f"x: expected shape ({expected}), got {x.shape}")

    def _converted(self, name: str, x: Array) -> Array:
        if x.dtype.kind not in "biuf":
            raise TypeError(f"{name}: expected real numbers, got {x.dtype}; convert it with astype")
        converted = self._buffer(name, x.shape)
        np.copyto(converted, x, casting="same_kind")
        return converted

    def backward(self, grad: Array) -> Array | None:
        """Fills `grads`, given the gradient of the last outputs, which it may overwrite.

        Stops at the first layer that trains, which does not compute its input's gradient. ValueError if
        `forward` was not called before.
        """
        gradient: Array | None = grad if well_formed(grad, self.dtype) else self._converted("grad", grad)
        if self._is_chained:
            self._chain.backward(gradient)  # type: ignore[union-attr, arg-type]
            return None
        if not self._has_run:
            raise ValueError("grad: expected forward to be called before")
        for backward in self._backward:
            gradient = backward(gradient)  # type: ignore[arg-type]
        return gradient

    @property
    def random_state(self) -> list[dict[str, Any]]:
        """The states of the layers' generators (what `Dropout` draws from); may be assigned."""
        return [dict(layer.rng.bit_generator.state) for layer in self.layers]

    @random_state.setter
    def random_state(self, states: Sequence[Mapping[str, Any]]) -> None:
        if len(states) != len(self.layers):
            raise ValueError(f"random_state: expected the states of {len(self.layers)} layers, got {len(states)}")
        before = self.random_state
        try:
            for layer, state in zip(self.layers, states, strict=True):
                layer.rng.bit_generator.state = state
        except BaseException:
            for layer, state in zip(self.layers, before, strict=True):
                layer.rng.bit_generator.state = state
            raise

    def summary(self) -> str:
        """A table of the layers, their output shapes and parameter counts.

        >>> from steepest import nn
        >>> print(nn.Sequential([nn.Dense(8), nn.ReLU()], input_shape=4).summary())
        layer             output  parameters
        Dense(units=8)    (8,)            40
        ReLU()            (8,)             0
        total                             40
        """
        rows = [("layer", "output", "parameters")]
        for layer, shape in zip(self.layers, self._shapes, strict=True):
            rows.append((repr(layer), str(shape), f"{sum(self._sizes(layer)):,}"))
        rows.append(("total", "", f"{self.params.size:,}"))
        first, second, third = (max(map(len, column)) for column in zip(*rows, strict=True))
        return "\n".join(f"{a:<{first}}    {b:<{second}}  {c:>{third}}" for a, b, c in rows)

    @property
    def multiplications(self) -> int:
        """How many an example takes, about: each parameter once wherever its layer applies it."""
        shapes = zip(self.layers, self._shapes, strict=True)
        return sum(sum(self._sizes(layer)) * math.prod(shape[:-1]) for layer, shape in shapes)

    def config(self) -> dict[str, Any]:
        """The architecture as plain data, for `from_config`; parameters are not in it."""
        return {
            "input_shape": list(self.input_shape),
            "dtype": self.dtype.name,
            "seed": self.seed,
            "layers": [{"type": type(x).__name__, **x.config()} for x in self.layers],
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom: Mapping[str, Any] | None = None) -> Sequential:
        """A new model of the architecture that `config()` gave, freshly initialised.

        `custom`: layer classes and initialisers of one's own, by name. Nothing is imported:
        ValueError for a name that is neither in `nn` nor in `custom`.
        """
        known = {name: vars(m)[name] for m in MODULES for name in m.__all__} | dict(custom or {})
        built = []
        for entry in config["layers"]:
            arguments = dict(entry)
            kind = _known(known, arguments.pop("type"))
            if isinstance(given := arguments.get("init"), str):
                arguments["init"] = _known(known, given)
            elif isinstance(given, Mapping):
                function = _known(known, given["partial"])
                arguments["init"] = functools.partial(function, *given["args"], **given["keywords"])
            built.append(kind(**arguments))
        return cls(built, config["input_shape"], seed=config["seed"], dtype=config["dtype"])

    def __getstate__(self) -> dict[str, Any]:
        state = {name: getattr(self, name) for name in ("layers", "input_shape", "seed", "dtype")}
        extras = {"params": self.params, "random_state": self.random_state, "frozen": self.frozen}
        return state | {"extras": extras}

    def __setstate__(self, state: dict[str, Any]) -> None:
        extras = state.pop("extras")
        vars(self).update(state)
        self._assemble()
        self.params[...] = extras["params"]
        self.random_state = extras["random_state"]
        self.freeze(extras["frozen"])

    def __repr__(self) -> str:
        return f"Sequential({self.layers!r}, input_shape={self.input_shape}, dtype={self.dtype})"


def _is_plain(x: Any) -> bool:
    """Whether it is a contiguous array of real numbers, without a mask."""
    real = isinstance(x, np.ndarray) and x.dtype.kind in "biuf"
    return real and well_formed(x, x.dtype) and not isinstance(x, np.ma.MaskedArray)


def _known(names: Mapping[str, Any], name: str) -> Any:
    if name not in names:
        raise ValueError(f"unknown layer or initialiser {name!r}; pass custom={{{name!r}: ...}}")
    return names[name]
