"""Post-training quantisation: a trained model becomes one of int8, or binary, weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from steepest import nn, reference
from steepest.compress.quantized import (
    Code,
    QuantizedConv2D,
    QuantizedDense,
    QuantizedMaxPool2D,
    QuantizedModel,
)
from steepest.nn.layer import Array, Layer

__all__ = ["quantize"]

WEIGHTED = nn.Dense, nn.Conv2D
KEPT = nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.AvgPool2D, nn.Flatten, nn.Reshape, nn.Dropout
ROWS = 256  # calibrated at a time


def quantize(
    model: nn.Sequential, calibration: Any = None, *, percentile: float = 100.0, bits: int | Sequence[int] = 8
) -> QuantizedModel:
    """A model that predicts in integer arithmetic: int8 weights times uint8 activations, summed in int32.

    - `calibration` (None): samples like those that will be predicted, (n, *input_shape), a few hundred
      of the training data. Each layer's range of inputs is then what it is for them ("static": the
      quickest). None is "dynamic": every batch's own range is found when it is predicted.
    - `percentile` (100): 100 is the least and the largest input that calibration saw; 99.9 leaves out
      the 0.1% at either end, which are then clipped, and resolves the rest more finely.
    - `bits` (8): 8, 7 or 1, or one for each layer with weights. Weights w of a unit (or filter) become
      q = round(w / s), s = max |w| / 127 with 8 bits (rounded to even, symmetric, each unit its own s);
      with 7 bits max |w| / 63, for runtimes whose sums of two products saturate in int16 (x86 without VNNI);
      with 1 bit sign(w), +1 for 0, and s = mean |w|. Without training for it, binary weights cost much
      accuracy; `bits=(8, 1, 8)` spares the first and the last layer.

    Biases, activations other than ReLU and average pooling stay in float32. `model` is not changed; one
    of float64 becomes one of float32. See `steepest.compress.quantized` for what is computed.

    TypeError for what is no `nn.Sequential`, or calibration data that are not real numbers. ValueError
    for a layer of another kind, or with too many inputs for int32, for weights that are not finite, for
    calibration data of another shape, empty, or not finite, and for `percentile` or `bits` out of range.

    Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", 2018 (here per output channel, biases in float32); the binary form is the
    Binary-Weight-Network of Rastegari et al., "XNOR-Net", 2016.

    >>> import numpy as np
    >>> from steepest import compress, nn
    >>> model = nn.Sequential([nn.Dense(64), nn.ReLU(), nn.Dense(3)], input_shape=20)
    >>> x = np.random.default_rng(0).normal(size=(500, 20)).astype(np.float32)
    >>> small = compress.quantize(model, calibration=x)
    >>> small.layers[0].weight.dtype, small.kind
    (dtype('int8'), 'int8, static')
    >>> y = model.forward(x)
    >>> bool(np.abs(small.forward(x) - y).max() < 0.03 * np.abs(y).max())
    True
    """
    _check_model(model)
    widths = _widths(bits, sum(isinstance(layer, WEIGHTED) for layer in model.layers))
    if not 50 < percentile <= 100:
        raise ValueError(f"percentile: expected a number above 50, up to 100, got {percentile!r}")
    if calibration is None and percentile != 100:
        raise ValueError("percentile: a dynamic range has none; pass calibration data, too")
    codes = iter(_codes(model, calibration, percentile))
    layers = [
        _quantized(layer, f"layers[{i}]", next(widths), next(codes)) if isinstance(layer, WEIGHTED) else _kept(layer)
        for i, layer in enumerate(model.layers)
    ]
    return QuantizedModel(layers, model.input_shape, seed=model.seed)


def _check_model(model: Any) -> None:
    if isinstance(model, QuantizedModel) or not isinstance(model, nn.Sequential):
        raise TypeError(f"model: expected an nn.Sequential of floats, got {type(model).__name__}")
    for i, layer in enumerate(model.layers):
        if type(layer) not in (*WEIGHTED, *KEPT, nn.MaxPool2D):
            known = ", ".join(kind.__name__ for kind in (*WEIGHTED, nn.MaxPool2D, *KEPT))
            raise ValueError(f"layers[{i}]: {type(layer).__name__} cannot be quantised; expected one of {known}")
    if not any(isinstance(layer, WEIGHTED) for layer in model.layers):
        raise ValueError("model: it has no Dense or Conv2D layer to quantise")


def _widths(bits: int | Sequence[int], layers: int) -> Any:
    widths = [int(bits)] * layers if isinstance(bits, int | np.integer) else list(bits)
    if len(widths) != layers or any(width not in (1, 7, 8) for width in widths):
        raise ValueError(f"bits: expected 8, 7 or 1, or one for each of {layers} layers with weights, got {bits!r}")
    return iter(widths)


def _kept(layer: Layer) -> Layer:
    if isinstance(layer, nn.MaxPool2D):
        return QuantizedMaxPool2D(**layer.config())
    return copy.deepcopy(layer)


def _quantized(layer: Layer, name: str, bits: int, code: Code | None) -> Layer:
    weight = np.asarray(layer.params["weight"], np.float32)
    bias = np.array(layer.params.get("bias", np.zeros(weight.shape[-1])), np.float32)
    for what, array in (("weight", weight), ("bias", bias)):
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: expected a finite {what}, got NaN or infinite values")
    q, scale = _signs(weight) if bits == 1 else _rounded(weight, 2 ** (bits - 1) - 1)
    if isinstance(layer, nn.Conv2D):
        return QuantizedConv2D(q, scale, bias, code, bits, stride=layer.stride, padding=layer.padding)
    return QuantizedDense(q, scale, bias, code, bits)


def _rounded(weight: Array, most: int) -> tuple[Array, Array]:
    """int8 in -most..most and the scale of each unit; 1 where all of its weights are as good as zero."""
    inputs = tuple(range(weight.ndim - 1))
    scale = np.abs(weight).max(inputs) / np.float32(most)
    scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale)
    return np.clip(np.rint(weight / scale), -most, most).astype(np.int8), scale


def _signs(weight: Array) -> tuple[Array, Array]:
    """-1 and 1, and the mean magnitude of each unit's weights."""
    inputs = tuple(range(weight.ndim - 1))
    return np.where(weight < 0, -1, 1).astype(np.int8), np.abs(weight).mean(inputs, dtype=np.float64).astype(np.float32)


def _codes(model: nn.Sequential, calibration: Any, percentile: float) -> list[Code | None]:
    """For each layer with weights the code of its inputs, by what they are for the calibration data."""
    weighted = [i for i, layer in enumerate(model.layers) if isinstance(layer, WEIGHTED)]
    if calibration is None:
        return [None] * len(weighted)
    x = _checked(model, np.asarray(calibration))
    ranges = {i: _Range(percentile) for i in weighted}
    shapes = [model.input_shape, *model._shapes]
    for i in weighted:
        ranges[i].expect(len(x) * math.prod(shapes[i]))
    for start in range(0, len(x), ROWS):
        y = np.ascontiguousarray(x[start : start + ROWS], model.dtype)
        for i, layer in enumerate(model.layers):
            if i in ranges:
                ranges[i].add(y)
            y = layer.forward(y, False)
    return [reference.byte_code(*ranges[i].ends()) for i in weighted]


def _checked(model: nn.Sequential, x: Array) -> Array:
    if x.dtype.kind not in "biuf":
        raise TypeError(f"calibration: expected real numbers, got {x.dtype}")
    if x.ndim and (*x.shape[1:], 1) == model.input_shape:
        x = x[..., None]
    if x.shape[1:] != model.input_shape or x.ndim == 0 or len(x) == 0:
        expected = ", ".join(["samples", *map(str, model.input_shape)])
        raise ValueError(f"calibration: expected shape ({expected}) with at least one sample, got {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("calibration: expected finite values, got NaN or infinite ones")
    return x


class _Range:
    """The ends of what was seen, less the same share of it at either end."""

    def __init__(self, percentile: float) -> None:
        self._left_out = 100 - percentile
        self._low = self._high = np.zeros(0)

    def expect(self, values: int) -> None:
        """How many there will be in all."""
        self._kept = 1 + math.floor(self._left_out * values / 100)

    def add(self, x: Array) -> None:
        """Keeps the least and the largest so far, as many as may be left out and one more."""
        low, high = np.concatenate([self._low, x.ravel()]), np.concatenate([self._high, x.ravel()])
        k = min(self._kept, len(low))
        self._low, self._high = np.partition(low, k - 1)[:k], np.partition(high, len(high) - k)[len(high) - k :]

    def ends(self) -> tuple[float, float]:
        """The least and the largest that are left."""
        return float(self._low.max()), float(self._high.min())
