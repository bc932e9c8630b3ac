"""Minimise a function that returns its value and gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest import _core
from steepest._arguments import check_integer, plain_array
from steepest.optim import Adam, Optimizer


@dataclass(frozen=True)
class MinimizeResult:
    """Where `minimize` ended."""

    x: NDArray[Any]  #: the point
    value: float  #: the function there
    history: list[float]  #: the values at the points before each step, and `value` last
    steps: int  #: how many steps were taken
    converged: bool  #: whether the gradient's norm came down to `tol`


def minimize(
    fun: Callable[[NDArray[Any]], tuple[float, NDArray[Any]]],
    x0: Any,
    optimizer: Callable[..., Optimizer] = Adam,
    *,
    steps: int = 1000,
    tol: float = 0.0,
    callback: Callable[[int, NDArray[Any], float], object] | None = None,
    **options: Any,
) -> MinimizeResult:
    """Takes up to `steps` steps of an optimizer from `x0`, along the gradient that `fun` returns.

    `fun(x)` returns `(value, gradient)`, the gradient an array of x's shape and dtype. `x0` is copied:
    to float32 if it is that, else to float64. `optimizer` is called with the array and `options`
    (`lr=...`). Stops early when the gradient's 2-norm is at most `tol`, or when `callback(step, x, value)`
    returns True (x is the live array: copy what you keep). Raises FloatingPointError when the value
    is not finite, and whatever `fun` raises.

        >>> import numpy as np, steepest as sp
        >>> result = sp.minimize(lambda x: (float(x @ x), 2 * x), [3.0, -4.0], sp.SGD, lr=0.1, steps=100, tol=1e-6)
        >>> result.converged, result.value < 1e-12
        (True, True)
    """
    if check_integer("steps", steps) < 0:
        raise ValueError(f"steps: expected a number >= 0, got {steps!r}")
    if not isinstance(tol, Real):
        raise TypeError(f"tol: expected a number, got {type(tol).__name__}")
    if not tol >= 0:
        raise ValueError(f"tol: expected a number >= 0, got {tol!r}")
    x0 = plain_array("x0", x0)
    if x0.dtype.kind not in "fiub":
        raise TypeError(f"x0: expected real numbers, got dtype {x0.dtype}")
    x = np.array(x0, dtype=np.float32 if x0.dtype == np.float32 else np.float64, order="C")
    opt = optimizer(x, **options)
    history: list[float] = []
    converged = False
    for step in range(steps + 1):
        answer = fun(x)
        if not isinstance(answer, tuple | list) or len(answer) != 2:
            raise TypeError(f"fun: expected (value, gradient), got {type(answer).__name__}")
        value, gradient = answer
        if not isinstance(value, Real | np.ndarray):
            raise TypeError(f"fun: expected a number as its value, got {type(value).__name__}")
        if np.ndim(value):
            raise TypeError(f"fun: expected a number as its value, got an array of shape {value.shape}")
        history.append(float(value))
        if not np.isfinite(value):
            raise FloatingPointError(f"fun: expected a finite value, got {value} at step {step}")
        if isinstance(gradient, np.generic):  # what arithmetic on 0-d arrays gives
            gradient = np.asarray(gradient)
        try:
            converged = _core.global_norm([gradient]) <= tol
        except (TypeError, ValueError) as error:
            raise type(error)(str(error).replace("arrays[0]", "gradient")) from None
        if converged or step == steps:
            break
        stop = callback(step, x, history[-1]) if callback is not None else None
        if isinstance(stop, bool | np.bool_) and stop:
            break
        opt.step(gradient)
    return MinimizeResult(x, history[-1], history, opt.steps, converged)
