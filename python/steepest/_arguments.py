"""What an optimizer is given: options, and arrays in containers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BOUNDS = {  # name: (lowest, highest, whether the lowest is allowed); the highest never is
    "lr": (0.0, math.inf, True),
    "alpha": (0.0, 1.0, True),
    "beta": (0.0, 1.0, True),
    "betas": (0.0, 1.0, True),
    "dampening": (0.0, 1.0, True),
    "eps": (0.0, math.inf, False),
    "initial_accumulator_value": (0.0, math.inf, True),
    "l1": (0.0, math.inf, True),
    "l2": (0.0, math.inf, True),
    "lr_decay": (0.0, math.inf, True),
    "max_norm": (0.0, math.inf, False),
    "max_value": (0.0, math.inf, False),
    "momentum": (0.0, 1.0, True),
    "momentum_decay": (0.0, math.inf, True),
    "weight_decay": (0.0, math.inf, True),
}


def check_number(name: str, value: Any, dtypes: Iterable[np.dtype[Any]]) -> None:
    """Refuses what is out of range, or comes out of range when it is rounded to the parameters' dtype."""
    low, high, closed = _BOUNDS[name]
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond every float
        number = math.inf
    for dtype in (np.dtype(np.float64), *dtypes):
        with np.errstate(over="ignore", under="ignore"):
            x = float(dtype.type(number))
        if not ((low <= x if closed else low < x) and x < high):
            rounded = "" if x == number or x != x else f", which is {x:g} in {dtype}"
            expected = f"{'>=' if closed else '>'} {low:g}" + (f" and < {high:g}" if high < math.inf else "")
            raise ValueError(f"{name}: expected a finite number {expected}, got {value!r}{rounded}")


def check_option(name: str, value: Any, dtypes: Iterable[np.dtype[Any]]) -> Any:
    """The option as the rule takes it: numbers as float, betas as a tuple."""
    if name == "lr" and callable(value):
        return value
    if name == "max_value" and value is None:
        return None
    if name == "betas":
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise TypeError(f"betas: expected two numbers, got {type(value).__name__}")
        if len(value) != 2:
            raise ValueError(f"betas: expected two numbers, got {value!r}")
        for beta in value:
            check_number(name, beta, dtypes)
        return tuple(float(beta) for beta in value)
    if name in _BOUNDS:
        check_number(name, value, dtypes)
        return float(value)
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected True or False, got {type(value).__name__}")
    return bool(value)


def plain_array(name: str, x: Any) -> NDArray[Any]:
    """The array that it is, or makes; TypeError for a masked one."""
    if np.ma.isMaskedArray(x):
        raise TypeError(
            f"{name}: expected a plain array, got a masked array, whose mask would be ignored; pass x.filled(...)"
        )
    return np.asarray(x)


def check_integer(name: str, value: Any, expected: str = "an integer") -> int:
    """The value as an int, if it is an integer and no bool; TypeError otherwise."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")
    return int(value)


def check_positive(name: str, value: Any, expected: str = "a positive integer") -> int:
    """The value as an int >= 1."""
    number = check_integer(name, value, expected)
    if number < 1:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return number


def check_seed(seed: Any) -> int | None:
    if seed is None:
        return None
    number = check_integer("seed", seed, "an integer or None")
    if not 0 <= number < 2**32:
        raise ValueError(f"seed: expected an integer from 0 to 2**32 - 1, got {seed}")
    return number


def container(params: Any) -> Any:
    """The array or the container that is kept: an iterator, and what is one in disguise, as a list."""
    if isinstance(params, np.ndarray | Mapping | Sequence):
        return params
    if not isinstance(params, Iterable):
        raise TypeError(f"params: expected arrays, got {type(params).__name__}")
    return list(params)


def arrays_of(params: Any) -> list[Any]:
    if isinstance(params, np.ndarray):
        return [params]
    return list(params.values() if isinstance(params, Mapping) else params)


def mask_list(name: str, params: Any, masks: Any) -> list[Any]:
    """A mask, or None, for each of the params, given in their structure."""
    count = len(arrays_of(params))
    if masks is None:
        return [None] * count
    if isinstance(params, np.ndarray):
        return [masks]
    if isinstance(params, Mapping):
        if not isinstance(masks, Mapping):
            raise TypeError(f"{name}: expected a mapping with names of params, got {type(masks).__name__}")
        if surplus := [key for key in masks if key not in params]:
            raise ValueError(f"{name}: expected names of params, got also {surplus}")
        return [masks.get(key) for key in params]
    return entries(name, masks, count)


def entries(name: str, masks: Any, count: int) -> list[Any]:
    if isinstance(masks, np.ndarray) or not isinstance(masks, Sequence):
        raise TypeError(f"{name}: expected a sequence of {count}, got {type(masks).__name__}")
    if len(masks) != count:
        raise ValueError(f"{name}: expected a sequence of {count}, got {len(masks)}; None keeps all")
    return list(masks)


def check_keys(name: str, mapping: Any, keys: tuple[Any, ...]) -> None:
    if not isinstance(mapping, Mapping):
        raise TypeError(f"{name}: expected a mapping, got {type(mapping).__name__}")
    if set(mapping) != set(keys):
        raise ValueError(f"{name}: expected the keys {list(keys)}, got {list(mapping)}")
