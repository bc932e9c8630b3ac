"""Makes trained models smaller and quicker.

`prune` sets weights or whole units to zero and keeps them there while training goes on, `shrink` cuts
dead units out; `quantize` gives a model of int8 weights that predicts in integer arithmetic; `save` and
`load` keep models of either kind; `distill` trains a small model on what a large one says. Imported
only when asked for: `import steepest` does not bring it.
"""

from steepest.compress.distillation import distill
from steepest.compress.pruning import Pruning, cubic, prune, shrink
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
    "Pruning",
    "QuantizedConv2D",
    "QuantizedDense",
    "QuantizedMaxPool2D",
    "QuantizedModel",
    "cubic",
    "distill",
    "load",
    "prune",
    "quantize",
    "save",
    "shrink",
]
