"""The one table of kernel cases: what `steepest verify` and the tests compare with the reference.

`KERNELS` gives for each kernel its cases of a dtype. A case runs its kernel, or several steps of it,
and knows what the reference gives for the same data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from steepest import reference
from steepest._cases import functions, layers, losses, low_precision, optimizers, products, quantized
from steepest._cases.case import Case, Expected, Options, Results, Sum, ulps

Cases: TypeAlias = Callable[[Any, bool], Iterator[Case]]


def _rule_cases(rule: str, dtype: Any, quick: bool) -> Iterator[Case]:
    yield from optimizers.cases(rule, dtype, quick)
    if dtype == np.float32:
        yield from low_precision.cases(rule, quick)


KERNELS: dict[str, Cases] = {rule: partial(_rule_cases, rule) for rule in reference.RULES}
KERNELS |= {name: partial(losses.elementwise_cases, name) for name in losses.ELEMENTWISE}
KERNELS |= {name: partial(losses.softmax_cases, name) for name in losses.SOFTMAX}
KERNELS |= {"distillation": losses.distillation_cases}
KERNELS |= {"global_norm": functions.norm_cases}
KERNELS |= {name: partial(functions.function_cases, name) for name in ("exp", "log", "log1p")}
KERNELS |= layers.CASES | products.CASES | quantized.CASES
"""For each kernel its cases of a dtype, fewer if `quick`."""

DTYPES = np.dtype(np.float32), np.dtype(np.float64)
PAIRS = [(name, dtype) for name in KERNELS for dtype in DTYPES if dtype == np.float32 or name not in quantized.CASES]
"""Every kernel with each dtype that it has."""

__all__ = ["DTYPES", "KERNELS", "PAIRS", "Case", "Cases", "Expected", "Options", "Results", "Sum", "ulps"]
