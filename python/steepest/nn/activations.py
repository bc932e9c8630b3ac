"""Element-wise activations: one pass with the bias forward, one masking pass backward."""

from __future__ import annotations

import numpy as np

from steepest.nn.layer import Array, Layer

__all__ = ["Activation", "ReLU"]


class Activation(Layer):
    """y = f(x), element by element, where f's derivative is a function of y.

    A subclass gives `activate` and `mask`. Behind a layer that takes its activation along (`Dense`)
    nothing more is computed here: that layer calls `activate` on its own output, bias included.
    """

    fused = False
    y: Array

    def activate(self, x: Array, bias: Array | None, out: Array) -> Array:
        """out = f(x + bias); `out` may be `x`."""
        raise NotImplementedError(f"{type(self).__name__} has no activate(x, bias, out)")

    def mask(self, grad: Array, y: Array) -> None:
        """grad *= f'(x), in place, given y = f(x)."""
        raise NotImplementedError(f"{type(self).__name__} has no mask(grad, y)")

    def forward(self, x: Array, train: bool) -> Array:
        """f(x), of x's shape and dtype."""
        self.y = x if self.fused else self.activate(x, None, self.buffer("y", x.shape))
        return self.y

    def backward(self, grad: Array) -> Array:
        """grad f'(x), written over `grad`."""
        self.mask(grad, self.y)
        return grad


class ReLU(Activation):
    """y = max(x, 0); its derivative at 0 is 0, as in PyTorch.

    >>> import numpy as np
    >>> from steepest import nn
    >>> nn.Sequential([nn.ReLU()], input_shape=3).forward(np.float32([[-1, 0, 2]]))
    array([[0., 0., 2.]], dtype=float32)
    """

    def activate(self, x: Array, bias: Array | None, out: Array) -> Array:
        """out = max(x + bias, 0)."""
        if bias is not None:
            x = np.add(x, bias, out=out)
        return np.maximum(x, 0, out=out)

    def mask(self, grad: Array, y: Array) -> None:
        """grad = grad where y > 0, else 0."""
        np.multiply(grad, np.greater(y, 0, out=self.buffer("mask", y.shape, bool)), out=grad)
