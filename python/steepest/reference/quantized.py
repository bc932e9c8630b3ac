"""Integer arithmetic: activations as bytes, weights as int8, exact sums.

Images are (batch, height, width, channels)."""

from __future__ import annotations

import numpy as np

from steepest.reference.arithmetic import Array
from steepest.reference.layers import Pair, im2col, max_pool

ROUND = np.float32(1.5 * 2**23)  # adding and taking it away rounds to the nearest integer, ties to even


def value_range(x: Array) -> tuple[float, float]:
    """The least and the largest of the values and 0, which therefore has a code of its own."""
    return float(x.min(initial=0)), float(x.max(initial=0))


def quantize(x: Array, scale: float, zero_point: int) -> Array:
    """round(x / scale) + zero_point, to nearest even, within 0..255: ONNX' QuantizeLinear. float32 to uint8."""
    zero = np.float32(zero_point)
    with np.errstate(all="ignore"):
        t = x / np.float32(scale)
        t = np.where(t > -zero, t, -zero)
        t = np.where(t < np.float32(255) - zero, t, np.float32(255) - zero)
        return np.asarray(t + ROUND - ROUND + zero).astype(np.uint8)


def packed(weight: Array, panel: int = 16) -> Array:
    """int8 (..., units), the leading axes being inputs, as the product takes it: panels of columns, pairs of rows.

    int16 (panels, pairs, 16, 2), filled up with zeros.
    """
    w = weight.reshape(-1, weight.shape[-1])
    pairs, panels = -(-w.shape[0] // 2), -(-w.shape[1] // panel)
    whole = np.zeros((2 * pairs, panel * panels), np.int16)
    whole[: w.shape[0], : w.shape[1]] = w
    return np.ascontiguousarray(whole.reshape(pairs, 2, panels, panel).transpose(2, 0, 3, 1))


def quantized_product(
    x: Array,
    window: Pair,
    stride: Pair,
    pad: Pair,
    positions: Pair,
    zero_point: int,
    weight: Array,
    scale: Array,
    bias: Array,
    lowest: float = -np.inf,
    out: tuple[float, int] | None = None,
) -> Array:
    """A row for each position of each image: max(scale sum (q - zero_point) w + bias, lowest), as float32.

    `x`: uint8 images; `weight`: int8 (window height, window width, channels, units). The sum is one of
    integers, exact; it is then rounded to float32, times the unit's scale, plus its bias, each
    rounded. `out`: scale and zero point to quantise that by.
    """
    centred = x.astype(np.int64) - zero_point  # 0 is what lies outside an image
    sums = im2col(centred, window, stride, pad, positions) @ weight.reshape(-1, weight.shape[-1]).astype(np.int64)
    with np.errstate(all="ignore"):
        y = sums.astype(np.float32) * scale + bias
        y = np.asarray(np.where(y > np.float32(lowest), y, np.float32(lowest)))
    return y if out is None else quantize(y, *out)


def quantized_max_pool(x: Array, window: Pair, stride: Pair, pad: Pair, positions: Pair) -> Array:
    """The largest byte of each window: what quantising the maximum gives, as quantising is monotonic."""
    return max_pool(x.astype(np.float32), window, stride, pad, positions)[0].astype(np.uint8)


def byte_code(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point of bytes for values from low to high: ONNX' DynamicQuantizeLinear, in float32.

    scale = (high - low) / 255 and zero_point = round(-low / scale) within 0..255, where `low` and `high`
    are widened to hold 0. A scale below the smallest normal number is 1.
    """
    F = np.float32
    least, most = min(F(low), F(0)), max(F(high), F(0))
    scale = (most - least) / F(255)
    if scale < np.finfo(F).tiny:
        return 1.0, 0
    zero_point = min(max(-least / scale, F(0)), F(255)) + ROUND - ROUND
    return float(scale), int(zero_point)
