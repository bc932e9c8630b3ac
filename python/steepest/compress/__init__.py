"""Makes trained models smaller and quicker.

`quantize` gives a model of int8 weights that predicts in integer arithmetic; `save` and `load` keep
models of either kind. Imported only when asked for: `import steepest` does not bring it.
"""

from steepest.compress.quantization import quantize
from steepest.compress.quantized import (
    QuantizedConv2D,
    QuantizedDense,
    QuantizedMaxPool2D,
    QuantizedModel,
    load,
    save,
)

__all__ = [
    "QuantizedConv2D",
    "QuantizedDense",
    "QuantizedMaxPool2D",
    "QuantizedModel",
    "load",
    "quantize",
    "save",
]
