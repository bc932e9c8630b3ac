"""Export of models to ONNX: `pip install "steepest[onnx]"`.

The file holds the whole way from raw samples to answers: the scaling of the features, the layers, and
the labels' names. onnxruntime, or any other runtime, serves it without steepest.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest import _storage, nn
from steepest._core import __version__
from steepest.compress.quantized import QuantizedConv2D, QuantizedDense, QuantizedMaxPool2D
from steepest.nn.layer import Layer

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError as error:
    raise ImportError('steepest.onnx needs onnx: pip install "steepest[onnx]"') from error

__all__ = ["export_onnx"]

OPSET, IR = 17, 8  # what every onnxruntime of the last years reads
BIAS_STEPS = 2**24  # of sums in int32, which have to hold the bias, too
Array = NDArray[Any]


def export_onnx(
    model: nn.Sequential,
    path: str | os.PathLike[str] | None = None,
    *,
    input_shape: Sequence[int] | None = None,
    scaling: tuple[Any, Any] | None = None,
    labels: Sequence[Any] | None = None,
    unscaling: tuple[float, float] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Any:
    """Writes a model as ONNX, at once or not at all, and returns the `onnx.ModelProto`.

    - `path` (None): the file; None writes none.
    - `input_shape` (None): of a sample as it comes in, if not `model.input_shape`, which it is reshaped to.
    - `scaling` (None): (mean, deviation), numbers or arrays of the samples' shape: inputs are then raw
      samples x, and the model sees (x - mean) / deviation. With arrays the input "x" is float64 and
      scaled as such, else it is float32.
    - `labels` (None): the classes' names, strings, integers or booleans (which become "True" and "False"), in the
      order of the outputs.
    - `unscaling` (None): (center, spread) of a regression.
    - `metadata` (None): strings that go along, by name.

    Input "x": (batch, *input_shape). Outputs: "logits" (batch, *model.output_shape), what
    `model.forward` gives; with labels also "probabilities", their softmax, and "label"; with `unscaling`
    also "value" (batch,), float64: logits spread + center.

    Images stay (batch, height, width, channels) outside, and are transposed inside where convolution and
    pooling need it. A model of float64 is exported in float32. Models that `compress.quantize` made with
    calibration export as QuantizeLinear / DequantizeLinear pairs, convolution biases rounded to int32 where they
    are at most 2^24 steps of the products' sums; those
    with dynamic ranges as DynamicQuantizeLinear with MatMulInteger or ConvInteger. On x86 without VNNI,
    onnxruntime's products of bytes saturate: quantise with `bits=7` for those.

    TypeError for what is no model; ValueError for a layer that has no counterpart (a class of one's
    own), labels of another number than the outputs, or `unscaling` of several outputs; OSError if the file cannot
    be written.

    >>> import numpy as np
    >>> from steepest import nn
    >>> from steepest.onnx import export_onnx
    >>> model = nn.Sequential([nn.Dense(16), nn.ReLU(), nn.Dense(3)], input_shape=4)
    >>> exported = export_onnx(model, labels=["setosa", "versicolor", "virginica"])
    >>> [node.op_type for node in exported.graph.node][:3], [output.name for output in exported.graph.output]
    (['MatMul', 'Add', 'Relu'], ['logits', 'probabilities', 'label'])

    Source: the ONNX operator specification, opset 17.
    """
    if not isinstance(model, nn.Sequential):
        raise TypeError(f"model: expected an nn.Sequential or a quantised model, got {type(model).__name__}")
    names = None if labels is None else _names(labels)
    if names is not None and (len(model.output_shape) != 1 or len(names) != model.output_shape[0]):
        raise ValueError(f"labels: expected one for each output of shape {model.output_shape}, got {len(names)}")
    if unscaling is not None and model.output_shape != (1,):
        raise ValueError(f"unscaling: expected None for outputs of shape {model.output_shape}, got {unscaling!r}")
    for i, layer in enumerate(model.layers):
        if type(layer) not in LAYERS:
            known = ", ".join(kind.__name__ for kind in LAYERS)
            raise ValueError(f"layers[{i}]: {type(layer).__name__} has no counterpart in ONNX; expected one of {known}")
    graph = _Graph()
    x, shape = "x", tuple(input_shape or model.input_shape)
    if math.prod(shape) != math.prod(model.input_shape):
        raise ValueError(f"input_shape: expected as many values as {model.input_shape} has, got {shape}")
    in_double = scaling is not None and np.ndim(scaling[0]) > 0
    given = helper.make_tensor_value_info(x, _type(np.float64 if in_double else np.float32), ["batch", *shape])
    if scaling is not None:
        x = _scaled(graph, x, shape, *scaling)
    if shape != model.input_shape:
        x = graph.add("Reshape", x, graph.constant(np.array([0, *model.input_shape])))
    graph.current = x
    for layer, taken in zip(model.layers, (model.input_shape, *model._shapes), strict=False):
        LAYERS[type(layer)](graph, layer, taken)
    graph.channels_first(False)
    logits = graph.add("Identity", graph.current, output="logits")
    outputs = [helper.make_tensor_value_info(logits, TensorProto.FLOAT, ["batch", *model.output_shape])]
    if names is not None:
        outputs += _answers(graph, logits, names)
    if unscaling is not None:
        center, spread = (graph.constant(np.float64(number)) for number in unscaling)
        one = graph.add("Squeeze", logits, graph.constant(np.array([1])))
        double = graph.add("Cast", one, to=TensorProto.DOUBLE)
        graph.add("Add", graph.add("Mul", double, spread), center, output="value")
        outputs.append(helper.make_tensor_value_info("value", TensorProto.DOUBLE, ["batch"]))
    proto = helper.make_model(
        helper.make_graph(graph.nodes, "steepest", [given], outputs, graph.constants),
        producer_name="steepest",
        producer_version=__version__,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR,
    )
    notes = dict(metadata or {}) | ({} if names is None else {"labels": json.dumps(names.tolist())})
    helper.set_model_props(proto, notes)
    onnx.checker.check_model(proto, full_check=True)
    if path is not None:
        _storage.replace(os.fsdecode(path), (memoryview(proto.SerializeToString()),))
    return proto


class _Graph:
    """Nodes and constants; `current` names the value that the next layer takes."""

    current: str

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._first = False

    def constant(self, array: Any) -> str:
        """A constant's name."""
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """A node of one output; its name."""
        return self.several(kind, inputs, (output or f"v{len(self.nodes)}",), **attributes)[0]

    def several(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> Sequence[str]:
        """A node; its outputs' names."""
        self.nodes.append(helper.make_node(kind, inputs, outputs, **attributes))
        return outputs

    def step(self, kind: str, *others: str, **attributes: Any) -> None:
        """A node that takes the current value first, and gives the next."""
        self.current = self.add(kind, self.current, *others, **attributes)

    def channels_first(self, wanted: bool) -> None:
        """Images as (batch, channels, height, width), or as (batch, height, width, channels)."""
        if wanted != self._first:
            self.step("Transpose", perm=[0, 3, 1, 2] if wanted else [0, 2, 3, 1])
        self._first = wanted


Exporter = Callable[[_Graph, Any, tuple[int, ...]], None]  # graph, layer, the shape of its inputs


def _type(dtype: Any) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def _scaled(graph: _Graph, x: str, shape: tuple[int, ...], mean: Any, deviation: Any) -> str:
    """(x - mean) / deviation, in float64 where they are arrays."""
    if np.ndim(mean) == 0:
        centred = graph.add("Sub", x, graph.constant(np.float32(mean))) if mean != 0 else x
        return graph.add("Div", centred, graph.constant(np.float32(deviation)))
    arrays = (np.broadcast_to(np.asarray(a, np.float64).reshape(-1), (math.prod(shape),)) for a in (mean, deviation))
    mean, deviation = (graph.constant(a.reshape(shape)) for a in arrays)
    return graph.add("Cast", graph.add("Div", graph.add("Sub", x, mean), deviation), to=TensorProto.FLOAT)


def _names(labels: Sequence[Any]) -> Array:
    """Labels as ONNX has them: an array of str (what they are printed as, if they are booleans) or of int64."""
    array = np.asarray(labels)
    if array.dtype.kind == "b":
        array = array.astype(str)
    if array.dtype.kind == "U" or (array.dtype.kind == "O" and all(isinstance(x, str) for x in array)):
        return array.astype(object)
    if array.dtype.kind in "iu" and not (array > np.iinfo(np.int64).max).any():
        return array.astype(np.int64)
    raise ValueError(f"labels: expected strings, or integers of 64 bits with a sign, got {labels!r:.80}")


def _answers(graph: _Graph, logits: str, labels: Array) -> list[Any]:
    graph.add("Softmax", logits, axis=-1, output="probabilities")
    place = graph.add("ArgMax", logits, axis=-1, keepdims=0)
    graph.add("Gather", graph.constant(labels), place, output="label")
    kind = TensorProto.STRING if labels.dtype == object else TensorProto.INT64
    return [
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", len(labels)]),
        helper.make_tensor_value_info("label", kind, ["batch"]),
    ]


def _nothing(graph: _Graph, layer: Any, shape: tuple[int, ...]) -> None:
    """Dropout, once training is over."""


def _node(kind: str, **attributes: str) -> Exporter:
    """An element-wise layer; attributes by the names that they have in the layer."""
    return lambda graph, layer, _: graph.step(kind, **{name: getattr(layer, own) for name, own in attributes.items()})


def _reshape(graph: _Graph, layer: Any, shape: tuple[int, ...]) -> None:
    graph.channels_first(False)
    graph.step("Reshape", graph.constant(np.array([0, *layer.shape])))


def _sliding(layer: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """A window's attributes; padding that the last windows need is below and to the right."""
    size, stride, before, places = layer.window
    after = [
        max((n - 1) * step + window - pad - length, 0)
        for n, step, window, pad, length in zip(places, stride, size, before, shape[:2], strict=True)
    ]
    return {"kernel_shape": list(size), "strides": list(stride), "pads": [*before, *after]}


def _pool(kind: str) -> Exporter:
    def export(graph: _Graph, layer: Any, shape: tuple[int, ...]) -> None:
        graph.channels_first(True)
        graph.step(kind, **_sliding(layer, shape))

    return export


def _filters(weight: Array) -> Array:
    """(height, width, channels, filters) as ONNX has them: (filters, channels, height, width)."""
    return np.ascontiguousarray(weight.transpose(3, 2, 0, 1))


def _dense(graph: _Graph, layer: Any, shape: tuple[int, ...]) -> None:
    graph.step("MatMul", graph.constant(layer.params["weight"].astype(np.float32)))
    if layer.bias:
        graph.step("Add", graph.constant(layer.params["bias"].astype(np.float32)))


def _convolution(graph: _Graph, layer: Any, shape: tuple[int, ...]) -> None:
    graph.channels_first(True)
    biases = [graph.constant(layer.params["bias"].astype(np.float32))] if layer.bias else []
    weight = graph.constant(_filters(layer.params["weight"].astype(np.float32)))
    graph.step("Conv", weight, *biases, **_sliding(layer, shape))


def _quantized(graph: _Graph, layer: Any, shape: tuple[int, ...]) -> None:
    is_image = isinstance(layer, QuantizedConv2D)
    graph.channels_first(is_image)
    weight = _filters(layer.weight) if is_image else layer.weight
    window = _sliding(layer, shape) if is_image else {}
    per_unit = (-1, 1, 1) if is_image else (-1,)  # behind the batch's axis
    if layer.input is None:
        code = [f"{name}{len(graph.nodes)}" for name in ("q", "scale", "zero")]
        q, scale, zero = graph.several("DynamicQuantizeLinear", (graph.current,), code)
        kind = "ConvInteger" if is_image else "MatMulInteger"
        total = graph.add(kind, q, graph.constant(weight), zero, **window)
        scales = graph.add("Mul", scale, graph.constant(layer.scale.reshape(per_unit)))
        graph.current = graph.add("Mul", graph.add("Cast", total, to=TensorProto.FLOAT), scales)
        graph.step("Add", graph.constant(layer.bias.reshape(per_unit)))
        return
    step = np.float32(layer.input[0])
    code = [graph.constant(step), graph.constant(np.uint8(layer.input[1]))]
    graph.step("QuantizeLinear", *code)
    graph.step("DequantizeLinear", *code)
    axis = 0 if is_image else 1
    units = np.zeros(layer.units, np.int8)
    own = graph.constant(weight), graph.constant(layer.scale), graph.constant(units)
    floats = graph.add("DequantizeLinear", *own, axis=axis)
    if not is_image:
        graph.step("MatMul", floats)
        graph.step("Add", graph.constant(layer.bias))
        return
    steps = step * layer.scale
    # Integers do not hold the biases of filters that are small, or 0.
    if (np.abs(layer.bias) >= BIAS_STEPS * steps).any() or not layer.weight.any(axis=(0, 1, 2)).all():
        graph.step("Conv", floats, **window)
        graph.step("Add", graph.constant(layer.bias.reshape(per_unit)))
        return
    bias = np.rint(layer.bias / steps).astype(np.int32)
    biases = graph.constant(bias), graph.constant(steps), graph.constant(units.astype(np.int32))
    graph.step("Conv", floats, graph.add("DequantizeLinear", *biases, axis=0), **window)


LAYERS: dict[type[Layer], Exporter] = {
    nn.Dense: _dense,
    nn.Conv2D: _convolution,
    nn.MaxPool2D: _pool("MaxPool"),
    nn.AvgPool2D: _pool("AveragePool"),
    nn.Flatten: _reshape,
    nn.Reshape: _reshape,
    nn.Dropout: _nothing,
    nn.ReLU: _node("Relu"),
    nn.LeakyReLU: _node("LeakyRelu", alpha="negative_slope"),
    nn.Tanh: _node("Tanh"),
    nn.Sigmoid: _node("Sigmoid"),
    QuantizedDense: _quantized,
    QuantizedConv2D: _quantized,
    QuantizedMaxPool2D: _pool("MaxPool"),
}
