"""The update rules as people write them in NumPy: what speeds are compared with.

A rule is `rule(p, g, state, t, **options)`: it updates `p` in place, keeps its state in the mapping,
empty before the first step t = 1, and takes options by the names that the optimizers use. What a
comparison leaves at its default is not written. For exact formulas see `steepest.reference`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest import reference

Array = NDArray[Any]
State = dict[str, Any]


def _decayed(p: Array, g: Array, o: State) -> Array:
    return g + o["weight_decay"] * p if o["weight_decay"] else g


def sgd(p: Array, g: Array, state: State, t: int, **o: Any) -> None:
    g = _decayed(p, g, o)
    if o["momentum"]:
        g = state["v"] = o["momentum"] * state["v"] + g if state else g
    p -= o["lr"] * g


def momentum(p: Array, g: Array, state: State, t: int, **o: Any) -> None:
    g = _decayed(p, g, o)
    state["v"] = o["beta"] * state.get("v", 0) + (1 - o["beta"]) * g
    p -= o["lr"] * state["v"]


def rmsprop(p: Array, g: Array, state: State, t: int, **o: Any) -> None:
    g = _decayed(p, g, o)
    state["v"] = o["alpha"] * state.get("v", 0) + (1 - o["alpha"]) * g**2
    p -= o["lr"] * g / (np.sqrt(state["v"]) + o["eps"])


def adagrad(p: Array, g: Array, state: State, t: int, **o: Any) -> None:
    g = _decayed(p, g, o)
    state["sum"] = state.get("sum", 0) + g**2
    p -= o["lr"] * g / (np.sqrt(state["sum"]) + o["eps"])


def adam(p: Array, g: Array, state: State, t: int, **o: Any) -> None:
    adamw(p, _decayed(p, g, o), state, t, **o | {"weight_decay": 0})


def adamw(p: Array, g: Array, state: State, t: int, **o: Any) -> None:
    beta1, beta2 = o["betas"]
    if o["weight_decay"]:
        p *= 1 - o["lr"] * o["weight_decay"]
    state["m"] = beta1 * state.get("m", 0) + (1 - beta1) * g
    state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * g**2
    m_hat = state["m"] / (1 - beta1**t)
    v_hat = state["v"] / (1 - beta2**t)
    p -= o["lr"] * m_hat / (np.sqrt(v_hat) + o["eps"])


def nadam(p: Array, g: Array, state: State, t: int, **o: Any) -> None:
    beta1, beta2 = o["betas"]
    g = _decayed(p, g, o)
    mu = beta1 * (1 - 0.5 * 0.96 ** (t * o["momentum_decay"]))
    mu_next = beta1 * (1 - 0.5 * 0.96 ** ((t + 1) * o["momentum_decay"]))
    product = state["product"] = state.get("product", 1) * mu
    state["m"] = beta1 * state.get("m", 0) + (1 - beta1) * g
    state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * g**2
    m_hat = mu_next * state["m"] / (1 - product * mu_next) + (1 - mu) * g / (1 - product)
    p -= o["lr"] * m_hat / (np.sqrt(state["v"] / (1 - beta2**t)) + o["eps"])


def lion(p: Array, g: Array, state: State, t: int, **o: Any) -> None:
    beta1, beta2 = o["betas"]
    m = state.get("m", 0)
    if o["weight_decay"]:
        p *= 1 - o["lr"] * o["weight_decay"]
    p -= o["lr"] * np.sign(beta1 * m + (1 - beta1) * g)
    state["m"] = beta2 * m + (1 - beta2) * g


def formula(name: str) -> Callable[..., None]:
    """The rule of that name; where there is none, the reference's formula."""
    written = {rule.__name__: rule for rule in (sgd, momentum, rmsprop, adagrad, adam, adamw, nadam, lion)}

    def exact(p: Array, g: Array, state: State, t: int, **o: Any) -> None:
        p[...], after = reference.RULES[name](p, g, state, t, **o)
        state.update(after)

    return written.get(name.lower(), exact)
