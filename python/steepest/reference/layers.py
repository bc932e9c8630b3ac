"""What the layers compute besides matrix products. Images are (batch, height, width, channels)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from steepest.reference.arithmetic import Array
from steepest.reference.functions import sigmoid, tanh

Pair = tuple[int, int]


def activate(activation: str, x: Array, bias: Array | None = None, alpha: float = 0.0) -> Array:
    """f(x + bias): identity, max(x, 0), x or alpha x, tanh(x), 1 / (1 + e^-x)."""
    T = x.dtype.type
    with np.errstate(all="ignore"):
        if bias is not None:
            x = x + bias
        if activation == "relu":
            return np.where(x <= 0, T(0), x)
        if activation == "leaky_relu":
            return np.where(x > 0, x, T(alpha) * x)
        if activation == "tanh":
            return np.asarray(tanh(x))
        return np.asarray(sigmoid(x)) if activation == "sigmoid" else x


def mask(activation: str, grad: Array, y: Array, alpha: float = 0.0) -> Array:
    """grad f'(x), given y = f(x); exactly 0 where a ReLU is off."""
    T = grad.dtype.type
    with np.errstate(all="ignore"):
        if activation == "relu":
            return np.where(y > 0, grad, T(0))
        if activation == "leaky_relu":
            return np.asarray(np.where(y > 0, grad, T(alpha) * grad))
        if activation == "tanh":
            return np.asarray(grad * (T(1) - y * y))
        if activation == "sigmoid":
            return np.asarray(grad * (y * (T(1) - y)))
        return grad


def dropout(x: Array, uniform: Array, rate: float) -> Array:
    """x / (1 - rate) where uniform < 1 - rate, else 0."""
    T = x.dtype.type
    return np.asarray(np.where(uniform < T(1 - rate), x * T(1 / (1 - rate)), T(0)))


def _places(
    shape: tuple[int, ...], window: Pair, stride: Pair, pad: Pair, out: Pair
) -> Iterator[tuple[int, int, slice, slice, slice, slice]]:
    """For each place (i, j) of the window: the outputs and the image pixels that meet there."""

    def meet(size: int, at: int, step: int, before: int, outputs: int) -> tuple[slice, slice]:
        hits = [o for o in range(outputs) if 0 <= o * step + at - before < size]
        if not hits:
            return slice(0), slice(0)
        first = hits[0] * step + at - before
        return slice(hits[0], hits[-1] + 1), slice(first, first + (len(hits) - 1) * step + 1, step)

    for i in range(window[0]):
        rows, ys = meet(shape[1], i, stride[0], pad[0], out[0])
        for j in range(window[1]):
            columns, xs = meet(shape[2], j, stride[1], pad[1], out[1])
            yield i, j, rows, columns, ys, xs


def im2col(x: Array, window: Pair, stride: Pair, pad: Pair, out: Pair) -> Array:
    """(batch, h, w, c) -> (batch out_h out_w, window_h window_w c): a row per output, zeros outside."""
    n, _, _, c = x.shape
    patches = np.zeros((n, *out, *window, c), x.dtype)
    for i, j, rows, columns, ys, xs in _places(x.shape, window, stride, pad, out):
        patches[:, rows, columns, i, j] = x[:, ys, xs]
    return patches.reshape(n * out[0] * out[1], window[0] * window[1] * c)


def col2im(patches: Array, shape: tuple[int, ...], window: Pair, stride: Pair, pad: Pair, out: Pair) -> Array:
    """The transpose of im2col: adds each patch to where it was taken from, in the order of the outputs."""
    n, h, w, c = shape
    image = np.zeros(shape, patches.dtype)
    parts = patches.reshape(n, *out, *window, c)
    for row in range(out[0]):
        for column in range(out[1]):
            for i in range(window[0]):
                for j in range(window[1]):
                    y, x = row * stride[0] + i - pad[0], column * stride[1] + j - pad[1]
                    if 0 <= y < h and 0 <= x < w:
                        image[:, y, x] += parts[:, row, column, i, j]
    return image


def max_pool(x: Array, window: Pair, stride: Pair, pad: Pair, out: Pair) -> tuple[Array, Array]:
    """The largest of each window, and the number of the pixel it came from: the first of equals."""
    n, _, w, c = x.shape
    best = np.full((n, *out, c), -np.inf, x.dtype)
    source = np.full((n, *out, c), -1, np.int32)
    pixels = np.arange(x.shape[1] * w, dtype=np.int32).reshape(1, x.shape[1], w, 1)
    for _, _, rows, columns, ys, xs in _places(x.shape, window, stride, pad, out):
        new, old, from_ = x[:, ys, xs], best[:, rows, columns], source[:, rows, columns]
        better = (from_ < 0) | (new > old) | (np.isnan(new) & ~np.isnan(old))
        best[:, rows, columns] = np.where(better, new, old)
        source[:, rows, columns] = np.where(better, pixels[:, ys, xs], from_)
    return best, source


def max_pool_backward(grad: Array, source: Array, shape: tuple[int, ...]) -> Array:
    """Each gradient goes to the pixel that was the largest, in the order of the outputs."""
    n, h, w, c = shape
    image = np.zeros((n, h * w, c), grad.dtype)
    k, channel = np.arange(n)[:, None], np.arange(c)[None, :]
    for row in range(grad.shape[1]):
        for column in range(grad.shape[2]):
            image[k, source[:, row, column], channel] += grad[:, row, column]
    return image.reshape(shape)


def _counts(shape: tuple[int, ...], window: Pair, stride: Pair, pad: Pair, out: Pair) -> Array:
    counts = np.zeros((1, *out, 1), np.intp)
    for _, _, rows, columns, _, _ in _places(shape, window, stride, pad, out):
        counts[:, rows, columns] += 1
    return counts


def avg_pool(x: Array, window: Pair, stride: Pair, pad: Pair, out: Pair) -> Array:
    """The mean of each window's pixels inside the image."""
    sums = np.zeros((len(x), *out, x.shape[3]), x.dtype)
    for _, _, rows, columns, ys, xs in _places(x.shape, window, stride, pad, out):
        sums[:, rows, columns] += x[:, ys, xs]
    return np.asarray(sums * (x.dtype.type(1) / _counts(x.shape, window, stride, pad, out).astype(x.dtype)))


def avg_pool_backward(grad: Array, shape: tuple[int, ...], window: Pair, stride: Pair, pad: Pair, out: Pair) -> Array:
    """Each gradient goes in equal shares to the window's pixels, in the order of the outputs."""
    shares = grad * (grad.dtype.type(1) / _counts(shape, window, stride, pad, out).astype(grad.dtype))
    parts = np.broadcast_to(shares[:, :, :, None, None], (*shares.shape[:3], *window, shape[3]))
    return col2im(parts, shape, window, stride, pad, out)
