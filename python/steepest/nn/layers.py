"""Layers that are not activations."""

from __future__ import annotations

import math
import operator

import numpy as np

from steepest.nn import init as initializers
from steepest.nn.activations import ReLU
from steepest.nn.init import Initializer
from steepest.nn.layer import Array, Layer, Shape

__all__ = ["Dense", "Dropout", "Flatten"]


class Dense(Layer):
    """y = x W + b, with W of shape (inputs, units) and b of shape (units,).

    Takes (batch, inputs), gives (batch, units). An activation that follows is applied in the same
    pass as the bias.

    - `bias` (True): whether there is a b; it starts at zero and has no weight decay.
    - `init` (None): `(rng, shape) -> array` for W. None is `init.he_normal` where a ReLU follows
      and `init.glorot_uniform` elsewhere.

    TypeError if `units` is not an integer; ValueError if it is not positive, or the input has more
    than one axis.

    >>> from steepest import nn
    >>> nn.Sequential([nn.Dense(10)], input_shape=64).output_shape
    (10,)
    """

    takes_activation = True
    x: Array

    def __init__(self, units: int, *, bias: bool = True, init: Initializer | None = None) -> None:
        if units < 1:
            raise ValueError(f"units: expected a positive integer, got {units!r}")
        self.units, self.bias, self.init = operator.index(units), bias, init

    def build(self, input_shape: Shape) -> Shape:
        """Declares "weight" and "bias"."""
        self._ones = np.ones(0, self.dtype)
        if len(input_shape) != 1:
            raise ValueError(f"Dense takes inputs of one axis, got {input_shape}; put Flatten before")
        self.declare("weight", (input_shape[0], self.units), self.init or self._default_init)
        if self.bias:
            self.declare("bias", (self.units,), initializers.zeros, decay=False)
        return (self.units,)

    def _default_init(self, rng: np.random.Generator, shape: Shape) -> Array:
        rectified = isinstance(self.activation, ReLU)
        init = initializers.he_normal if rectified else initializers.glorot_uniform
        return init(rng, shape)

    def forward(self, x: Array, train: bool) -> Array:
        """f(x W + b), f being the activation that follows, if one does."""
        self.x = x
        z: Array = np.matmul(x, self.params["weight"], out=self.buffer("z", (len(x), self.units)))
        bias = self.params.get("bias")
        if self.activation is not None:
            self.activation.activate(z, bias, z)
        elif bias is not None:
            np.add(z, bias, out=z)
        return z

    def backward(self, grad: Array) -> Array | None:
        """dW = x' grad, db = sum of grad over the batch; returns grad W'."""
        np.matmul(self.x.T, grad, out=self.grads["weight"])
        if self.bias:
            # A product with ones is quicker than a sum over the first axis, and rounds less.
            if len(self._ones) < len(grad):
                self._ones = np.ones(len(grad), self.dtype)
            np.dot(self._ones[: len(grad)], grad, out=self.grads["bias"])
        if not self.needs_input_gradient:
            return None
        return np.matmul(grad, self.params["weight"].T, out=self.buffer("dx", self.x.shape))


class Flatten(Layer):
    """Makes one axis of all but the batch's: (batch, a, b, ...) to (batch, a b ...). No copy.

    >>> from steepest import nn
    >>> nn.Sequential([nn.Flatten()], input_shape=(28, 28)).output_shape
    (784,)
    """

    input_shape: Shape
    size: int

    def build(self, input_shape: Shape) -> Shape:
        """The product of all axes."""
        self.input_shape, self.size = input_shape, math.prod(input_shape)
        return (self.size,)

    def forward(self, x: Array, train: bool) -> Array:
        """A view of `x` with shape (batch, size)."""
        return x.reshape(len(x), self.size)

    def backward(self, grad: Array) -> Array:
        """A view of `grad` with the input's shape."""
        return grad.reshape(len(grad), *self.input_shape)


class Dropout(Layer):
    """In training, zeroes each input with probability `rate` and scales the rest by 1 / (1 - rate).

    Otherwise passes its input on ("inverted" dropout, as in Keras and PyTorch). Draws from the
    layer's own generator, which the model seeds. ValueError unless 0 <= rate < 1.

    Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", 2014.

    >>> import numpy as np
    >>> from steepest import nn
    >>> model = nn.Sequential([nn.Dropout(0.5)], input_shape=8)
    >>> bool(np.isin(model.forward(np.ones((1, 8), np.float32), train=True), [0, 2]).all())
    True
    """

    kept: Array | None = None

    def __init__(self, rate: float) -> None:
        if not 0 <= rate < 1:
            raise ValueError(f"rate: expected 0 <= rate < 1, got {rate!r}")
        self.rate = float(rate)

    def forward(self, x: Array, train: bool) -> Array:
        """x kept / (1 - rate) in training, else x."""
        if not train or self.rate == 0:
            self.kept = None
            return x
        uniform = self.buffer("uniform", x.shape)
        self.rng.random(out=uniform, dtype=self.dtype.type)
        self.kept = np.less(uniform, 1 - self.rate, out=self.buffer("kept", x.shape, bool))
        return self._scaled(x, self.kept, self.buffer("y", x.shape))

    def backward(self, grad: Array) -> Array:
        """grad kept / (1 - rate), written over `grad`."""
        return grad if self.kept is None else self._scaled(grad, self.kept, grad)

    def _scaled(self, x: Array, kept: Array, out: Array) -> Array:
        np.multiply(x, kept, out=out)
        return np.multiply(out, 1 / (1 - self.rate), out=out)
