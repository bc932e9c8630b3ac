"""Element-wise activations: one pass with the bias forward, one masking pass backward."""

from __future__ import annotations

import math

from steepest import _core
from steepest.nn.layer import Array, Layer

__all__ = ["Activation", "LeakyReLU", "ReLU", "Sigmoid", "Tanh"]


class Activation(Layer):
    """y = f(x), element by element, where f's derivative is a function of y.

    A subclass gives `activate` and `mask`. Behind a layer that takes its activation along (`Dense`,
    `Conv2D`) nothing more is computed here: that layer calls `activate` on its own output, bias
    included. `rectifies`: whether that layer should start from `init.he_normal`.
    """

    rectifies = False
    fused = False
    compiled: tuple[str, float] | None = None
    y: Array

    def activate(self, x: Array, bias: Array | None, out: Array) -> Array:
        """out = f(x + bias), the bias being of the last axis; `out` may be `x`."""
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


class _Compiled(Activation):
    """An activation that the compiled module knows by name; equals `steepest.reference` to the bit."""

    kernel: str
    slope = 0.0
    _is_plain = True  # a subclass that computes something of its own is not

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._is_plain = all(getattr(cls, name) is getattr(_Compiled, name) for name in ("activate", "mask", "backward"))

    @property
    def compiled(self) -> tuple[str, float] | None:  # type: ignore[override]
        """The kernel's name and slope, unless a subclass computes something else."""
        return (self.kernel, self.slope) if self._is_plain else None

    def activate(self, x: Array, bias: Array | None, out: Array) -> Array:
        """out = f(x + bias), the bias being of the last axis; `out` may be `x`."""
        _core.activate(self.kernel, x, bias, self.slope, out)
        return out

    def mask(self, grad: Array, y: Array) -> None:
        """grad *= f'(x), in place, given y = f(x)."""
        _core.mask(self.kernel, grad, y, self.slope)


class ReLU(_Compiled):
    """y = max(x, 0); its derivative at 0 is 0, as in PyTorch. NaN stays NaN.

    >>> import numpy as np
    >>> from steepest import nn
    >>> nn.Sequential([nn.ReLU()], input_shape=3).forward(np.float32([[-1, 0, 2]]))
    array([[0., 0., 2.]], dtype=float32)
    """

    kernel = "relu"
    rectifies = True


class LeakyReLU(_Compiled):
    """y = x where x > 0, else negative_slope x; its derivative at 0 is negative_slope, as in PyTorch.

    `negative_slope` (0.01) is PyTorch's default; Keras' is 0.3. ValueError unless it is finite and
    >= 0. Maas, Hannun and Ng, "Rectifier Nonlinearities Improve Neural Network Acoustic Models", 2013.

    >>> import numpy as np
    >>> from steepest import nn
    >>> nn.Sequential([nn.LeakyReLU(0.25)], input_shape=3).forward(np.float32([[-1, 0, 2]]))
    array([[-0.25,  0.  ,  2.  ]], dtype=float32)
    """

    kernel = "leaky_relu"
    rectifies = True

    def __init__(self, negative_slope: float = 0.01) -> None:
        if not 0 <= negative_slope < math.inf:
            raise ValueError(f"negative_slope: expected a finite number >= 0, got {negative_slope!r}")
        self.negative_slope = self.slope = float(negative_slope)


class Tanh(_Compiled):
    """y = tanh(x), within 3 units in the last place; its derivative is 1 - y^2.

    >>> import numpy as np
    >>> from steepest import nn
    >>> nn.Sequential([nn.Tanh()], input_shape=3).forward(np.float32([[-20, 0, 0.5]]))
    array([[-1.        ,  0.        ,  0.46211717]], dtype=float32)
    """

    kernel = "tanh"


class Sigmoid(_Compiled):
    """y = 1 / (1 + e^-x), within 3 units in the last place; its derivative is y (1 - y).

    Not for a model's end: `losses.binary_cross_entropy` takes logits, and applies it itself.

    >>> import numpy as np
    >>> from steepest import nn
    >>> nn.Sequential([nn.Sigmoid()], input_shape=3).forward(np.float32([[-200, 0, 200]]))
    array([[0. , 0.5, 1. ]], dtype=float32)
    """

    kernel = "sigmoid"
