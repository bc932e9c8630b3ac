"""Convolution: patches of the images times the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from steepest import _core
from steepest._arguments import check_positive
from steepest.nn.init import Initializer
from steepest.nn.layer import Array, Shape
from steepest.nn.layers import Affine
from steepest.nn.windows import Padding, Pair, Window, check_padding, extent, slide

__all__ = ["Conv2D"]

PATCH_BYTES = 1 << 25  # the memory that patches may take, unless one image has more of them


class Conv2D(Affine):
    """y[r, c] = sum over i, j of x[r stride + i, c stride + j] W[i, j] + b: a cross-correlation.

    Takes (batch, height, width, channels), gives (batch, rows, columns, filters); W has shape
    (window height, window width, channels, filters), as in Keras, and b (filters,). An activation
    that follows is applied in the same pass as the bias.

    - `filters`: how many values each position of the window gives.
    - `kernel_size`: the window's height and width, or one number for both.
    - `stride` (1): the window's step, likewise.
    - `padding` ("valid"): windows inside the image, or "same": ceil(size / stride) positions with
      zeros around the image, the odd one below and to the right, as in Keras.
    - `bias` (True), `init` (None): as in `Dense`.

    It is one matrix product of the images' patches, (batch rows columns, window channels), with W.
    Patches take at most 32 MiB, or one image's: a larger batch is gone through in parts, twice.
    TypeError for an argument that is not an integer; ValueError if one is not positive, or if the
    input is not an image that the window fits into.

    >>> from steepest import nn
    >>> model = nn.Sequential([nn.Conv2D(32, 3), nn.ReLU(), nn.MaxPool2D()], input_shape=(28, 28, 1))
    >>> print(model.summary())
    layer                                output        parameters
    Conv2D(filters=32, kernel_size=3)    (26, 26, 32)         320
    ReLU()                               (26, 26, 32)           0
    MaxPool2D()                          (13, 13, 32)           0
    total                                                     320
    """

    x: Array
    window: Window
    output_shape: Shape
    _patches: Array
    _kept = False  # whether `_patches` are those of the whole of `x`

    def __init__(
        self,
        filters: int,
        kernel_size: int | Pair,
        *,
        stride: int | Pair = 1,
        padding: Padding = "valid",
        bias: bool = True,
        init: Initializer | None = None,
    ) -> None:
        self.filters = check_positive("filters", filters)
        self.kernel_size, self.stride = extent("kernel_size", kernel_size), extent("stride", stride)
        self.padding = check_padding(padding)
        self.bias, self.init = bias, init

    def build(self, input_shape: Shape) -> Shape:
        """Declares "weight" and "bias"."""
        self.window, places = slide(self, input_shape, self.kernel_size, self.stride, self.padding)
        self.output_shape = (*places, self.filters)
        self.declare_affine((*self.window[0], input_shape[2], self.filters))
        self._places, self._patch = math.prod(places), math.prod(self.window[0]) * input_shape[2]
        self._images = max(1, PATCH_BYTES // (self._places * self._patch * self.dtype.itemsize))
        return self.output_shape

    def _parts(self, n: int) -> Iterator[slice]:
        """The images of a batch, as many at a time as there is memory for; at least one part."""
        for start in range(0, max(n, 1), self._images):
            yield slice(start, min(start + self._images, n))

    def _patches_of(self, x: Array) -> Array:
        patches = self.buffer("patches", (len(x) * self._places, self._patch))
        _core.im2col(x, *self.window, patches)
        return patches

    def forward(self, x: Array, train: bool) -> Array:
        """f(x * W + b), f being the activation that follows, if one does."""
        self.x = x
        weight = self.params["weight"].reshape(self._patch, self.filters)
        y = self.buffer("y", (len(x), *self.output_shape))
        for part in self._parts(len(x)):
            self._patches = self._patches_of(x[part])
            z = y[part].reshape(len(self._patches), self.filters)
            np.matmul(self._patches, weight, out=z)
            self.finish(z)
        self._kept = len(x) <= self._images
        return y

    def backward(self, grad: Array) -> Array | None:
        """dW = patches' grad, db = sum of grad over all positions; returns the patches of grad W', put back."""
        weight, dweight = (a["weight"].reshape(self._patch, self.filters) for a in (self.params, self.grads))
        dx = self.buffer("dx", self.x.shape) if self.needs_input_gradient else None
        for part in self._parts(len(grad)):
            patches = self._patches if self._kept else self._patches_of(self.x[part])
            g = grad[part].reshape(len(patches), self.filters)
            if part.start == 0:
                np.matmul(patches.T, g, out=dweight)
            else:
                dweight += patches.T @ g
            self.collect_bias(g, add=part.start > 0)
            if dx is not None:
                self._kept = False  # the gradient of the patches takes their place
                np.matmul(g, weight.T, out=patches)
                _core.col2im(dx[part], *self.window, patches)
        return dx
