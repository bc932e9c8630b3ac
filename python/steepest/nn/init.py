"""Initial values of parameters: functions `(rng, shape) -> array`.

A weight's last two axes are its inputs and its outputs; the axes before them, if any, are those of
a convolution's window, and count towards both fans (as in Keras).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "Initializer",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "zeros",
]

Initializer = Callable[[np.random.Generator, tuple[int, ...]], npt.NDArray[Any]]


def _fans(shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) < 2:
        raise ValueError(
            f"shape has no fan-in and fan-out: expected two axes or more, got {shape}; "
            "use init.zeros, or a function of your own"
        )
    window = math.prod(shape[:-2])
    return window * shape[-2], window * shape[-1]


def zeros(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Zeros of the given shape; draws nothing from `rng`."""
    return np.zeros(shape)


def he_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Normal with standard deviation sqrt(2 / fan_in), for layers that a ReLU follows.

    float64, of the given shape. Not truncated: PyTorch's `kaiming_normal_`; Keras' truncates.
    He, Zhang, Ren and Sun, "Delving Deep into Rectifiers", 2015.
    """
    fan_in, _ = _fans(shape)
    return rng.normal(0.0, math.sqrt(2 / max(fan_in, 1)), shape)


def he_uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Uniform on +-sqrt(6 / fan_in): he_normal's variance, bounded. float64."""
    fan_in, _ = _fans(shape)
    bound = math.sqrt(6 / max(fan_in, 1))
    return rng.uniform(-bound, bound, shape)


def glorot_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Normal with standard deviation sqrt(2 / (fan_in + fan_out)). float64.

    Not truncated: PyTorch's `xavier_normal_`; Keras' truncates.
    Glorot and Bengio, "Understanding the difficulty of training deep networks", 2010.
    """
    return rng.normal(0.0, math.sqrt(2 / max(sum(_fans(shape)), 1)), shape)


def glorot_uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Uniform on +-sqrt(6 / (fan_in + fan_out)), Keras' default for dense layers. float64."""
    bound = math.sqrt(6 / max(sum(_fans(shape)), 1))
    return rng.uniform(-bound, bound, shape)
