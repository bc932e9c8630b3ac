"""Models of int8 weights that predict in integer arithmetic, and their files.

What a `QuantizedModel` is made of, and exactly what it computes; an exporter needs no more:

- `model.layers`: `QuantizedDense` and `QuantizedConv2D` in place of the layers with weights,
  `QuantizedMaxPool2D` in place of `MaxPool2D`, all others as they were. `Dropout` does nothing.
- Of a quantised layer: `weight` W, int8 in -127..127, of the float weight's shape (inputs, units) or
  (height, width, channels, filters); `scale` s_w and `bias` b, float32 (units,), b zeros where there
  was none; `bits` 8, 7 (-63..63), or 1 (-1 or 1); `input` (s_x, z_x), or None where it is dynamic.
- A static layer takes q = clip(round(x / s_x) + z_x, 0, 255) as uint8: QuantizeLinear, its quotient in
  float32, rounded to nearest even. A dynamic one finds s_x and z_x from the least and the largest value
  of the whole batch: DynamicQuantizeLinear (`steepest.reference.byte_code`).
- acc = sum (q - z_x) W, exact in int32: MatMulInteger, ConvInteger; the padding of "same" is z_x.
- y = float32(acc) * (s_x s_w) + b, every operation rounded to float32; then the activation, in float32.
- `emits`, set where static layers are joined by nothing but ReLU, max-pooling, reshaping and dropout,
  is the `input` of the next one: y is quantised by it at once and pooled as bytes. That changes no
  bit of what quantising before the next layer would give, as quantising keeps the order.
- The last layer gives float32. Everything else (other activations, average pooling) is in float32.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from steepest import _core, checkpoint, reference
from steepest._core import __version__
from steepest._history import History
from steepest.nn import Dropout, MaxPool2D, ReLU, Reshape, Sequential
from steepest.nn.layer import Array, Layer, Shape
from steepest.nn.windows import Padding, Pair, Window, slide

__all__ = ["QuantizedConv2D", "QuantizedDense", "QuantizedMaxPool2D", "QuantizedModel", "load", "save"]

Code = tuple[float, int]  # scale and zero point
Path = str | os.PathLike[str]

FORMAT = 1
MOST = 2**31 - 1
ONE_PIXEL: Window = ((1, 1), (1, 1), (0, 0), (1, 1))


class _Quantized(Layer):
    """What both layers share: y = f(s_x s_w sum (q - z_x) W + b)."""

    takes_activation = True
    emits: Code | None = None
    window = ONE_PIXEL

    def __init__(self, weight: Array, scale: Array, bias: Array, input: Code | None = None, bits: int = 8) -> None:
        self.weight, self.scale, self.bias = weight, scale, bias
        self.input, self.bits = input, bits

    @property
    def units(self) -> int:
        """Dense units, or filters."""
        return int(self.weight.shape[-1])

    def prepare(self) -> None:
        """What the kernel takes; ValueError for arrays of another kind, or if a sum of products could leave int32."""
        for name, dtype, shape in (
            ("weight", np.int8, self.weight.shape),
            ("scale", np.float32, (self.units,)),
            ("bias", np.float32, (self.units,)),
        ):
            got = getattr(self, name)
            if got.dtype != dtype or got.shape != shape:
                raise ValueError(f"{name}: expected {np.dtype(dtype)} {shape}, got {got.dtype} {got.shape}")
        inputs = self.weight.reshape(-1, self.units)
        if 255 * int(np.abs(inputs.astype(np.int64)).sum(0).max()) > MOST:
            raise ValueError(f"{self!r}: its {len(inputs):,} inputs are too many: their sum may leave int32")
        self._packed = reference.packed(inputs)
        self._sums = np.zeros(16 * len(self._packed), np.int32)
        self._sums[: self.units] = inputs.sum(0, dtype=np.int32)
        if self.input is not None:
            self._static = *self.input, *self._by_input(*self.input)

    def _by_input(self, scale: float, zero_point: int) -> tuple[Array, Array]:
        """What the sums start at, and the scale of their end."""
        return self._sums * np.int32(-zero_point), np.float32(scale) * self.scale

    def _code(self, x: Array) -> tuple[float, int, Array, Array]:
        if self.input is not None:
            return self._static
        code = reference.byte_code(*_core.value_range(x))
        return *code, *self._by_input(*code)

    def product(self, x: Array, images: Shape, output_shape: Shape) -> Array:
        """The outputs for x, floats or the bytes that the layer before emitted: as float32, or as bytes."""
        scale, zero_point, start, scales = self._code(x)
        if x.dtype != np.uint8:
            q = self.buffer("q", x.shape, np.uint8)
            _core.quantize(x, scale, zero_point, q)
            x = q
        kind, code = (np.float32, ()) if self.emits is None else (np.uint8, self.emits)
        y = self.buffer(kind.__name__, (len(x), *output_shape), kind)
        relu = isinstance(self.activation, ReLU)
        _core.quantized_product(
            x.reshape(len(x), *images), *self.window, zero_point, self._packed, start, scales, self.bias,
            0.0 if relu else -np.inf, y.reshape(-1, self.units), *code,
        )  # fmt: skip
        if self.activation is not None and not relu:
            self.activation.activate(y, None, y)
        return y

    def __repr__(self) -> str:
        # Not their arrays.
        ranges = "dynamic" if self.input is None else "static"
        return f"{type(self).__name__}({self.units}, bits={self.bits}, {ranges})"


class QuantizedDense(_Quantized):
    """y = f(x W + b) in integers: see `steepest.compress.quantized`. `quantize` makes it of a `Dense`."""

    def build(self, input_shape: Shape) -> Shape:
        """(units,)."""
        if input_shape != self.weight.shape[:-1]:
            raise ValueError(f"{self!r} takes inputs {self.weight.shape[:-1]}, got {input_shape}")
        self.prepare()
        return (self.units,)

    def forward(self, x: Array, train: bool) -> Array:
        """f(x W + b), f being the activation that follows, if one does; as bytes where the layer emits them."""
        return self.product(x, (1, 1, x.shape[1]), (self.units,))


class QuantizedConv2D(_Quantized):
    """y = f(x * W + b) in integers: see `steepest.compress.quantized`. `quantize` makes it of a `Conv2D`."""

    def __init__(
        self,
        weight: Array,
        scale: Array,
        bias: Array,
        input: Code | None = None,
        bits: int = 8,
        *,
        stride: int | Pair = 1,
        padding: Padding = "valid",
    ) -> None:
        super().__init__(weight, scale, bias, input, bits)
        self.stride, self.padding = stride, padding

    def build(self, input_shape: Shape) -> Shape:
        """(rows, columns, filters)."""
        size = self.weight.shape[0], self.weight.shape[1]
        self.window, places = slide(self, input_shape, size, self.stride, self.padding)
        if input_shape[2] != self.weight.shape[2]:
            raise ValueError(f"{self!r} takes {self.weight.shape[2]} channels, got {input_shape[2]}")
        self.prepare()
        self.output_shape = (*places, self.units)
        return self.output_shape

    def forward(self, x: Array, train: bool) -> Array:
        """f(x * W + b), f being the activation that follows, if one does; as bytes where the layer emits them."""
        return self.product(x, x.shape[1:], self.output_shape)


class QuantizedMaxPool2D(MaxPool2D):
    """`MaxPool2D`, also of bytes."""

    def forward(self, x: Array, train: bool) -> Array:
        """The largest of each window, of x's dtype."""
        if x.dtype != np.uint8:
            return super().forward(x, train)
        y = self.buffer("bytes", (len(x), *self.output_shape), np.uint8)
        _core.quantized_max_pool(x, *self.window, y)
        return y


class QuantizedModel(Sequential):
    """A model that predicts in integer arithmetic; `quantize` makes it. See `steepest.compress.quantized`.

    `forward`, `layers`, `summary()`, `output_shape` and so on are those of `nn.Sequential`, also what
    `Trainer` evaluates; `params` is empty, as nothing in it trains. Its `dtype` is float32, that of its
    inputs and outputs. NaN or infinite inputs are a ValueError. Static models give each example the
    same outputs whatever batch it is in; dynamic ones take a batch's range, as ONNX does.
    """

    def _assemble(self) -> None:
        super()._assemble()
        for i, layer in enumerate(self.layers):
            if isinstance(layer, _Quantized):
                layer.emits = self._taken_by(i + 1)

    def _taken_by(self, start: int) -> Code | None:
        """The code of the next quantised layer's input, if only what keeps bytes in order stands before it."""
        for layer in self.layers[start:]:
            if isinstance(layer, _Quantized):
                return layer.input
            if isinstance(layer, ReLU):
                keeps = layer.fused  # another one computes with floats
            else:
                keeps = isinstance(layer, QuantizedMaxPool2D | Reshape | Dropout)
            if not keeps:
                return None
        return None

    def forward(self, x: Array, train: bool = False) -> Array:
        """The outputs for a batch, as `nn.Sequential.forward` gives them; ValueError if `train`."""
        if train:
            raise ValueError("train: a quantised model cannot be trained; train the one that it was made of")
        return super().forward(x)

    @property
    def quantized_layers(self) -> list[_Quantized]:
        """Those with weights."""
        return [layer for layer in self.layers if isinstance(layer, _Quantized)]

    @property
    def kind(self) -> str:
        """In words: "int8, static" and the like."""
        bits = sorted({layer.bits for layer in self.quantized_layers})
        names = {1: "binary", 7: "int7", 8: "int8"}
        ranges = "dynamic" if self.quantized_layers[0].input is None else "static"
        return f"{' and '.join(names[n] for n in bits)}, {ranges}"

    def __repr__(self) -> str:
        return super().__repr__().replace("Sequential", "QuantizedModel", 1)


KINDS: dict[str, type[Layer]] = {c.__name__: c for c in (QuantizedDense, QuantizedConv2D, QuantizedMaxPool2D)}


def save(
    path: Path, model: Sequential, *, history: History | None = None, extra: Mapping[str, Any] | None = None
) -> None:
    """Writes a model, quantised or not, as `steepest.save` writes: at once or not at all. See `load`.

    `history` and `extra` go along as there. Weights are int8 in the file, or bits where they are
    binary. TypeError for what is no model or cannot be saved, ValueError if `path` is no file, OSError
    if it cannot be written; the old file is then as it was.
    """
    from steepest import _storage

    if not isinstance(model, QuantizedModel):
        checkpoint.save(path, model, history=history, extra=extra)
        return
    if extra is not None and not isinstance(extra, Mapping):
        raise TypeError(f"extra: expected a mapping, got {type(extra).__name__}")
    config = model.config()
    config["layers"] = [_packed(entry) for entry in config["layers"]]
    document = {
        "version": __version__,
        "quantized": FORMAT,
        "architecture": config,
        "history": None if history is None else vars(history),
        "extra": extra or {},
    }
    _storage.write(os.fsdecode(path), document)


def load(path: Path, custom: Mapping[str, Any] | None = None) -> checkpoint.Checkpoint:
    """Reads a model that `save`, or `steepest.save`, wrote; without its optimizer, if it had one.

    FileNotFoundError if there is no such file. ValueError, naming the file and what is wrong, if it is
    damaged, of another kind, or quantised by a newer version of steepest.

    >>> import tempfile
    >>> import numpy as np
    >>> from steepest import compress, nn
    >>> model = compress.quantize(nn.Sequential([nn.Dense(3)], input_shape=2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     compress.save(f"{folder}/small.safetensors", model, extra={"classes": ["a", "b", "c"]})
    ...     saved = compress.load(f"{folder}/small.safetensors")
    >>> saved.model, saved.extra["classes"]
    (QuantizedModel([QuantizedDense(3, bits=8, dynamic)], input_shape=(2,), dtype=float32), ['a', 'b', 'c'])
    """
    from steepest import _storage

    name = os.fsdecode(path)
    with checkpoint._errors_about(name):
        document = _storage.read(name)
        if "quantized" not in document:
            return checkpoint.load(path, custom, optimizer=False)
        if document["quantized"] > FORMAT:
            raise ValueError(
                f"quantised by steepest {document['version']}, which is newer: its format is "
                f"{document['quantized']}, this version reads {FORMAT}; upgrade to read it"
            )
        config = document["architecture"]
        config["layers"] = [_unpacked(entry) for entry in config["layers"]]
        model = QuantizedModel.from_config(config, KINDS)
        return checkpoint.Checkpoint(
            model, None, checkpoint._history(document["history"]), document["extra"], document["version"]
        )


def _packed(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A layer's description with binary weights as bits."""
    if entry.get("bits") != 1:
        return dict(entry)
    return {**entry, "weight": np.packbits(entry["weight"] > 0), "shape": entry["weight"].shape}


def _unpacked(entry: dict[str, Any]) -> dict[str, Any]:
    shape = entry.pop("shape", None) if entry.get("bits") == 1 else None
    if shape is None:
        return entry
    bits = np.unpackbits(entry["weight"], count=int(np.prod(shape)))
    return {**entry, "weight": (2 * bits.astype(np.int8) - 1).reshape(shape)}
