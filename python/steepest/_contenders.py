"""What the kernels are timed against, beside `_as_written`: rules with preallocated `out=`, losses in both forms.

The rules here are `rule(p, g, s, t, **options)`; `s` holds the arrays m and v, zero before the first
step t = 1, and a and b, whose contents don't matter. Losses are `loss(x, y, s)` and return the value
and the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
State = dict[str, Any]


def _subtract(p: Array, rate: float, direction: Array) -> None:
    direction *= rate
    p -= direction


def _average(x: Array, g: Array, beta: float, a: Array) -> None:
    """x = beta x + (1 - beta) g"""
    x *= beta
    np.multiply(g, 1 - beta, out=a)
    x += a


def _root(v: Array, eps: float, correction: float, a: Array) -> Array:
    """sqrt(v / correction) + eps"""
    np.sqrt(v, out=a)
    a *= 1 / math.sqrt(correction)
    a += eps
    return a


def sgd(p: Array, g: Array, s: State, t: int, **o: Any) -> None:
    m, a = s["m"], s["a"]
    if o["momentum"]:
        m *= o["momentum"]
        m += g
        g = m
    np.multiply(g, o["lr"], out=a)
    p -= a


def momentum(p: Array, g: Array, s: State, t: int, **o: Any) -> None:
    m, a = s["m"], s["a"]
    _average(m, g, o["beta"], a)
    np.multiply(m, o["lr"], out=a)
    p -= a


def rmsprop(p: Array, g: Array, s: State, t: int, **o: Any) -> None:
    v, a, b = s["v"], s["a"], s["b"]
    _average(v, np.multiply(g, g, out=b), o["alpha"], a)
    _subtract(p, o["lr"], np.divide(g, _root(v, o["eps"], 1, a), out=a))


def adagrad(p: Array, g: Array, s: State, t: int, **o: Any) -> None:
    v, a = s["v"], s["a"]
    v += np.multiply(g, g, out=a)
    _subtract(p, o["lr"], np.divide(g, _root(v, o["eps"], 1, a), out=a))


def adam(p: Array, g: Array, s: State, t: int, **o: Any) -> None:
    m, v, a, b = s["m"], s["v"], s["a"], s["b"]
    beta1, beta2 = o["betas"]
    _average(m, g, beta1, a)
    _average(v, np.multiply(g, g, out=b), beta2, a)
    root = _root(v, o["eps"], 1 - beta2**t, a)
    _subtract(p, o["lr"] / (1 - beta1**t), np.divide(m, root, out=a))


def adamw(p: Array, g: Array, s: State, t: int, **o: Any) -> None:
    p *= 1 - o["lr"] * o["weight_decay"]
    adam(p, g, s, t, **o)


def nadam(p: Array, g: Array, s: State, t: int, **o: Any) -> None:
    m, v, a, b = s["m"], s["v"], s["a"], s["b"]
    beta1, beta2 = o["betas"]
    mu, mu_next = (beta1 * (1 - 0.5 * 0.96 ** (k * o["momentum_decay"])) for k in (t, t + 1))
    product = s["product"] = s.get("product", 1.0) * mu
    _average(m, g, beta1, a)
    _average(v, np.multiply(g, g, out=b), beta2, a)
    root = _root(v, o["eps"], 1 - beta2**t, a)
    np.multiply(g, (1 - mu) / (1 - product), out=b)
    b /= root
    p -= np.multiply(b, o["lr"], out=b)
    np.divide(m, root, out=b)
    _subtract(p, o["lr"] * mu_next / (1 - product * mu_next), b)


def lion(p: Array, g: Array, s: State, t: int, **o: Any) -> None:
    m, a, b = s["m"], s["a"], s["b"]
    beta1, beta2 = o["betas"]
    np.multiply(m, beta1, out=a)
    a += np.multiply(g, 1 - beta1, out=b)
    _subtract(p, o["lr"], np.sign(a, out=a))
    _average(m, g, beta2, a)


PREALLOCATED: dict[str, Callable[..., None]] = {
    rule.__name__: rule for rule in (sgd, momentum, rmsprop, adagrad, adam, adamw, nadam, lion)
}


def mse(x: Array, y: Array, s: State) -> tuple[float, Array]:
    d = x - y
    return (d**2).mean(), 2 * d / d.size


def mse_preallocated(x: Array, y: Array, s: State) -> tuple[float, Array]:
    d = np.subtract(x, y, out=s["a"])
    loss = np.multiply(d, d, out=s["b"]).mean()
    d *= 2 / d.size
    return loss, d


def mae(x: Array, y: Array, s: State) -> tuple[float, Array]:
    d = x - y
    return np.abs(d).mean(), np.sign(d) / d.size


def mae_preallocated(x: Array, y: Array, s: State) -> tuple[float, Array]:
    d = np.subtract(x, y, out=s["a"])
    loss = np.abs(d, out=s["b"]).mean()
    np.sign(d, out=d)
    d *= 1 / d.size
    return loss, d


def huber(x: Array, y: Array, s: State) -> tuple[float, Array]:
    d = x - y
    a = np.abs(d)
    return np.where(a <= 1, 0.5 * d**2, a - 0.5).mean(), np.clip(d, -1, 1) / d.size


def huber_preallocated(x: Array, y: Array, s: State) -> tuple[float, Array]:
    d, a, b = np.subtract(x, y, out=s["a"]), s["b"], s["c"]
    np.minimum(np.abs(d, out=a), 1, out=b)  # with c = min(|d|, 1): c (|d| - c / 2)
    a -= 0.5 * b
    a *= b
    loss = a.mean()
    np.clip(d, -1, 1, out=d)
    d *= 1 / d.size
    return loss, d


def binary_cross_entropy(x: Array, y: Array, s: State) -> tuple[float, Array]:
    loss = (np.maximum(x, 0) - x * y + np.log1p(np.exp(-np.abs(x)))).mean()
    return loss, (1 / (1 + np.exp(-x)) - y) / x.size


def binary_cross_entropy_preallocated(x: Array, y: Array, s: State) -> tuple[float, Array]:
    a, b, e = s["a"], s["b"], s["c"]
    np.exp(np.negative(x, out=e), out=e)  # overflows for x < -88; the safe form takes twice as long
    e += 1
    np.log(e, out=b)
    np.subtract(1, y, out=a)
    a *= x
    b += a
    loss = b.mean()
    np.divide(1, e, out=a)
    a -= y
    a *= 1 / x.size
    return loss, a


def softmax_cross_entropy(x: Array, y: Array, s: State) -> tuple[float, Array]:
    rows = np.arange(len(x))
    z = x - x.max(axis=1, keepdims=True)
    e = np.exp(z)
    total = e.sum(axis=1, keepdims=True)
    loss = (np.log(total[:, 0]) - z[rows, y]).mean()
    gradient = e / total
    gradient[rows, y] -= 1
    return loss, gradient / len(x)


def softmax_cross_entropy_preallocated(x: Array, y: Array, s: State) -> tuple[float, Array]:
    rows, a, column = s["rows"], s["a"], s["column"]
    np.subtract(x, np.max(x, axis=1, keepdims=True, out=column), out=a)
    at_label = a[rows, y]
    np.exp(a, out=a)
    np.sum(a, axis=1, keepdims=True, out=column)
    loss = (np.log(column[:, 0]) - at_label).mean()
    column *= len(x)
    a /= column
    a[rows, y] -= 1 / len(x)
    return loss, a


def global_norm(x: Array, y: Array, s: State) -> tuple[float, Array | None]:
    return math.sqrt((x**2).sum()), None


def global_norm_preallocated(x: Array, y: Array, s: State) -> tuple[float, Array | None]:
    return math.sqrt(np.multiply(x, x, out=s["a"]).sum()), None
