"""The specification: every kernel's formula in plain NumPy, written for reading.

The compiled kernels give, bit for bit, what these functions give. So they use + - * /, `sqrt`,
comparisons, `where` and bit views alone: NumPy's own `exp`, `log` and `maximum` differ between its
instruction sets. Scalars are Python floats, prepared once per step and rounded once to the arrays'
dtype. No function changes its arguments.

A rule is `rule(p, g, state, t, **options) -> (p, state)`: the parameter, the gradient, the state
before the step (`{}` before the first), the number of the step (from 1), and the options of the
optimizer's param group under the same names; `scale` is the product of `grad_scale` and the factor
of the global-norm clip.

    >>> import numpy as np
    >>> p, g = np.array([1.0, 2.0]), np.array([0.5, -0.5])
    >>> p, state = sgd(p, g, {}, 1, lr=0.1)
    >>> p
    array([0.95, 2.05])
"""

from __future__ import annotations

from steepest.reference.codecs import (
    from_8bit,
    from_bfloat16,
    join,
    low_precision,
    random_bits,
    split,
    to_8bit,
    to_bfloat16,
)
from steepest.reference.functions import exp, flush, larger, log, log1p, power, sgn, sigmoid, tanh
from steepest.reference.layers import (
    activate,
    avg_pool,
    avg_pool_backward,
    col2im,
    dropout,
    im2col,
    mask,
    max_pool,
    max_pool_backward,
)
from steepest.reference.losses import (
    binary_cross_entropy,
    distillation,
    huber,
    kl_divergence,
    mae,
    mse,
    softmax_cross_entropy,
)
from steepest.reference.products import matmul
from steepest.reference.quantized import (
    byte_code,
    packed,
    quantize,
    quantized_max_pool,
    quantized_product,
    value_range,
)
from steepest.reference.rules import (
    RULES,
    adagrad,
    adam,
    adamw,
    clip_factor,
    fused,
    lion,
    masked,
    momentum,
    nadam,
    rmsprop,
    sgd,
)
from steepest.reference.sums import global_norm, total

__all__ = [
    "RULES",
    "activate",
    "adagrad",
    "adam",
    "adamw",
    "avg_pool",
    "avg_pool_backward",
    "binary_cross_entropy",
    "byte_code",
    "clip_factor",
    "col2im",
    "distillation",
    "dropout",
    "exp",
    "flush",
    "from_8bit",
    "from_bfloat16",
    "fused",
    "global_norm",
    "huber",
    "im2col",
    "join",
    "kl_divergence",
    "larger",
    "lion",
    "log",
    "log1p",
    "low_precision",
    "mae",
    "mask",
    "masked",
    "matmul",
    "max_pool",
    "max_pool_backward",
    "momentum",
    "mse",
    "nadam",
    "packed",
    "power",
    "quantize",
    "quantized_max_pool",
    "quantized_product",
    "random_bits",
    "rmsprop",
    "sgd",
    "sgn",
    "sigmoid",
    "softmax_cross_entropy",
    "split",
    "tanh",
    "to_8bit",
    "to_bfloat16",
    "total",
    "value_range",
]
