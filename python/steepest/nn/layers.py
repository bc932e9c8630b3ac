"""Layers that are neither activations nor for images alone."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import numpy as np

from steepest import _core
from steepest._arguments import check_positive
from steepest.nn import init as initializers
from steepest.nn.init import Initializer
from steepest.nn.layer import Array, Layer, Shape

__all__ = ["Dense", "Dropout", "Flatten", "Reshape"]

NO_ACTIVATION = "identity", 0.0
# Multiplications up to which a product of our own, on all threads, is as quick as BLAS' on all of its, which hold the
# cores afterwards; it never is without the one instruction that multiplies and adds.
SMALL_WORK = 0 if _core.build_info()["isas"] == ["sse2"] else 1 << 26


class Affine(Layer):
    """What `Dense` and `Conv2D` share: a weight, a bias, and the activation that follows."""

    takes_activation = True
    bias: bool
    init: Initializer | None

    def declare_affine(self, shape: Shape) -> None:
        """Declares "weight" of that shape and "bias" of its last axis."""
        self.declare("weight", shape, self.init or self._default_init)
        if self.bias:
            self.declare("bias", shape[-1:], initializers.zeros, decay=False)

    def _default_init(self, rng: np.random.Generator, shape: Shape) -> Array:
        rectified = getattr(self.activation, "rectifies", False)
        init = initializers.he_normal if rectified else initializers.glorot_uniform
        return init(rng, shape)

    def finish(self, z: Array) -> None:
        """z = f(z + b), in place."""
        bias = self.params.get("bias")
        if self.activation is not None:
            self.activation.activate(z, bias, z)
        elif bias is not None:
            _core.activate("identity", z, bias, 0.0, z)

    def collect_bias(self, grad: Array, add: bool = False) -> None:
        """db = sum of grad's rows, or added to what is there."""
        if not self.bias:
            return
        ones = self.buffer("ones", (len(grad),), fill=1)
        # A product with ones is quicker than a sum over the first axis, and rounds less.
        if add:
            self.grads["bias"] += ones @ grad
        else:
            np.dot(ones, grad, out=self.grads["bias"])


class Dense(Affine):
    """y = x W + b, with W of shape (inputs, units) and b of shape (units,).

    Takes (batch, inputs), gives (batch, units). An activation that follows is applied in the same
    pass as the bias.

    - `bias` (True): whether there is a b; it starts at zero and has no weight decay.
    - `init` (None): `(rng, shape) -> array` for W. None is `init.he_normal` where a ReLU or a
      LeakyReLU follows and `init.glorot_uniform` elsewhere.

    TypeError if `units` is not an integer; ValueError if it is not positive, or the input has more
    than one axis.

    >>> from steepest import nn
    >>> nn.Sequential([nn.Dense(10)], input_shape=64).output_shape
    (10,)
    """

    x: Array
    _is_small = False  # whether the products of the last batch are our own

    def __init__(self, units: int, *, bias: bool = True, init: Initializer | None = None) -> None:
        self.units, self.bias, self.init = check_positive("units", units), bias, init

    def build(self, input_shape: Shape) -> Shape:
        """Declares "weight" and "bias"."""
        if len(input_shape) != 1:
            raise ValueError(f"Dense takes inputs of one axis, got {input_shape}; put Flatten before")
        self.declare_affine((input_shape[0], self.units))
        return (self.units,)

    @property
    def compiled(self) -> tuple[str, float] | None:
        """The kernel and the slope of the activation that follows, if one of the compiled module's does."""
        return NO_ACTIVATION if self.activation is None else self.activation.compiled

    def forward(self, x: Array, train: bool) -> Array:
        """f(x W + b), f being the activation that follows, if one does."""
        self.x = x
        weight, z = self.params["weight"], self.buffer("z", (len(x), self.units))
        self._is_small = x.size * self.units <= SMALL_WORK or (
            SMALL_WORK > 0 and x.flags.forc and _core.is_mostly_zero(x)
        )
        compiled = self.compiled
        if self._is_small and compiled is not None:
            _core.dense(x, weight, self.params.get("bias"), *compiled, z)
            return z
        self._multiply(x, weight, z)
        self.finish(z)
        return z

    def backward(self, grad: Array) -> Array | None:
        """dW = x' grad, db = sum of grad over the batch; returns grad W'."""
        if self._is_small:
            _core.dense_gradients(self.x.T, grad, self.grads["weight"], self.grads.get("bias"))
        else:
            np.matmul(self.x.T, grad, out=self.grads["weight"])
            self.collect_bias(grad)
        if not self.needs_input_gradient:
            return None
        dx = self.buffer("dx", self.x.shape)
        self._multiply(grad, self.params["weight"].T, dx)
        return dx

    def _multiply(self, a: Array, b: Array, out: Array) -> None:
        if self._is_small:
            _core.matmul(a, b, out)
        else:
            np.matmul(a, b, out=out)


class Reshape(Layer):
    """Gives each example another shape: (batch, ...) to (batch, *shape). No copy.

    `shape`: positive integers. ValueError where the number of values differs.

    >>> from steepest import nn
    >>> nn.Sequential([nn.Reshape((28, 28, 1))], input_shape=784).output_shape
    (28, 28, 1)
    """

    input_shape: Shape

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(operator.index(n) for n in shape)
        if not all(n > 0 for n in self.shape):
            raise ValueError(f"shape: expected positive integers, got {shape!r}")

    def build(self, input_shape: Shape) -> Shape:
        """The shape asked for."""
        if math.prod(input_shape) != math.prod(self.shape):
            raise ValueError(f"shape: {input_shape} cannot become {self.shape}, which has another number of values")
        self.input_shape = input_shape
        return self.shape

    def forward(self, x: Array, train: bool) -> Array:
        """A view of `x` with the new shape."""
        return x.reshape(len(x), *self.shape)

    def backward(self, grad: Array) -> Array:
        """A view of `grad` with the input's shape."""
        return grad.reshape(len(grad), *self.input_shape)


class Flatten(Reshape):
    """Makes one axis of all but the batch's: (batch, a, b, ...) to (batch, a b ...). No copy.

    >>> from steepest import nn
    >>> nn.Sequential([nn.Flatten()], input_shape=(28, 28)).output_shape
    (784,)
    """

    def __init__(self) -> None:
        pass

    def build(self, input_shape: Shape) -> Shape:
        """The product of all axes."""
        self.shape = (math.prod(input_shape),)
        return super().build(input_shape)


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

    uniform: Array | None = None

    def __init__(self, rate: float) -> None:
        if not 0 <= rate < 1:
            raise ValueError(f"rate: expected 0 <= rate < 1, got {rate!r}")
        self.rate = float(rate)

    def forward(self, x: Array, train: bool) -> Array:
        """x / (1 - rate) where a uniform number is below 1 - rate, else 0, in training; otherwise x."""
        if not train or self.rate == 0:
            self.uniform = None
            return x
        self.uniform = self.rng.random(out=self.buffer("uniform", x.shape), dtype=self.dtype.type)
        y = self.buffer("y", x.shape)
        _core.dropout(x, self.uniform, self.rate, y)
        return y

    def backward(self, grad: Array) -> Array:
        """grad / (1 - rate) where the input was kept, else 0, written over `grad`."""
        if self.uniform is not None:
            _core.dropout(grad, self.uniform, self.rate, grad)
        return grad
