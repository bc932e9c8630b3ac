"""Layers that make images smaller."""

from __future__ import annotations

import numpy as np

from steepest import _core
from steepest.nn.layer import Array, Layer, Shape
from steepest.nn.windows import Padding, Pair, Window, check_padding, extent, slide

__all__ = ["AvgPool2D", "MaxPool2D"]


class _Pool2D(Layer):
    """What both poolings share: a window that slides over each channel."""

    window: Window
    input_shape: Shape
    output_shape: Shape

    def __init__(
        self, pool_size: int | Pair = 2, *, stride: int | Pair | None = None, padding: Padding = "valid"
    ) -> None:
        self.pool_size = extent("pool_size", pool_size)
        self.stride = None if stride is None else extent("stride", stride)
        self.padding = check_padding(padding)

    def build(self, input_shape: Shape) -> Shape:
        """Fewer rows and columns, the same channels."""
        stride = self.pool_size if self.stride is None else self.stride
        self.window, places = slide(self, input_shape, self.pool_size, stride, self.padding)
        self.input_shape, self.output_shape = input_shape, (*places, input_shape[2])
        return self.output_shape

    def _output(self, x: Array) -> Array:
        return self.buffer("y", (len(x), *self.output_shape))

    def _input_gradient(self, grad: Array) -> Array:
        return self.buffer("dx", (len(grad), *self.input_shape))


class MaxPool2D(_Pool2D):
    """The largest value of each window and channel: (batch, height, width, channels), fewer of each.

    - `pool_size` (2): the window's height and width, or one number for both.
    - `stride` (None): its step, likewise; None is `pool_size`.
    - `padding` ("valid"): windows inside the image, or "same": ceil(size / stride) positions, of
      which only the pixels inside count, as in Keras.

    The gradient goes to the first of equals, row by row, as in PyTorch; NaN counts as the largest.
    TypeError and ValueError name an argument that is not a positive integer, or two; ValueError if
    the input is not an image that the window fits into.

    >>> import numpy as np
    >>> from steepest import nn
    >>> x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    >>> nn.Sequential([nn.MaxPool2D()], input_shape=(4, 4, 1)).forward(x)[0, :, :, 0]
    array([[ 5.,  7.],
           [13., 15.]], dtype=float32)
    """

    sources: Array

    def forward(self, x: Array, train: bool) -> Array:
        """The maxima; which pixel each came from is kept."""
        y = self._output(x)
        self.sources = self.buffer("sources", y.shape, np.int32)
        _core.max_pool(x, *self.window, y, self.sources, True)
        return y

    def backward(self, grad: Array) -> Array:
        """Each gradient to the pixel that was the largest, added up where windows overlap."""
        dx = self._input_gradient(grad)
        _core.max_pool(dx, *self.window, grad, self.sources, False)
        return dx


class AvgPool2D(_Pool2D):
    """The mean of each window and channel: (batch, height, width, channels), fewer of each.

    Arguments and errors as in `MaxPool2D`. With padding "same", the mean is that of the pixels
    inside the image, as in Keras; PyTorch's counts the padding unless told not to.

    >>> import numpy as np
    >>> from steepest import nn
    >>> x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    >>> nn.Sequential([nn.AvgPool2D()], input_shape=(4, 4, 1)).forward(x)[0, :, :, 0]
    array([[ 2.5,  4.5],
           [10.5, 12.5]], dtype=float32)
    """

    def forward(self, x: Array, train: bool) -> Array:
        """The means."""
        y = self._output(x)
        _core.avg_pool(x, *self.window, y)
        return y

    def backward(self, grad: Array) -> Array:
        """Each gradient in equal shares to the window's pixels."""
        dx = self._input_gradient(grad)
        _core.avg_pool_backward(dx, *self.window, grad)
        return dx
