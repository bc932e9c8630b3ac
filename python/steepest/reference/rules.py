"""The update rules, and what is fused before each of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from steepest.reference.arithmetic import Array
from steepest.reference.functions import exp, flush, larger, power, sgn

State: TypeAlias = dict[str, Any]


def fused(
    p: Array,
    g: Array,
    *,
    scale: float = 1.0,
    maximize: bool = False,
    max_value: float | None = None,
    l1: float = 0.0,
    l2: float = 0.0,
) -> Array:
    """The gradient that the rule sees: scaled (in double, rounded once), clipped, with penalties."""
    T = p.dtype.type
    bound = T(math.inf if max_value is None else max_value)
    x = (g.astype(np.float64) * (-scale if maximize else scale)).astype(p.dtype)
    x = np.asarray(np.where(x < -bound, -bound, np.where(x > bound, bound, x)))
    if T(l1) == 0 and T(l2) == 0:
        return x
    return np.asarray(x + T(l1) * sgn(p) + T(l2) * p)


def clip_factor(norm: float, max_norm: float | None) -> float:
    """min(1, max_norm / (norm + 1e-6)); not a number if the norm is not."""
    if max_norm is None:
        return 1.0
    factor = max_norm / (norm + 1e-6)
    return 1.0 if factor > 1 else factor


def masked(
    rule: Callable[..., tuple[Array, State]], p: Array, g: Array, state: State, t: int, mask: Array, **options: Any
) -> tuple[Array, State]:
    """A rule's step with a mask: where it is False, p and g count as +0, and p is +0 afterwards."""
    zero = p.dtype.type(0)
    p, state = rule(np.where(mask, p, zero), np.where(mask, g, zero), state, t, **options)
    return np.where(mask, p, zero), state


def sgd(
    p: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    lr_in_velocity: bool = False,
    **shared: Any,
) -> tuple[Array, State]:
    """b = momentum b + (1 - dampening) g (the first b is g);  p -= lr b, or Nesterov's lr (g + momentum b).

    With `lr_in_velocity`: v = momentum v - lr g;  p += v, or Nesterov's momentum v - lr g.
    """
    T = p.dtype.type
    g = fused(p, g, l2=weight_decay, **shared)
    if momentum == 0:
        return p - T(lr) * g, {}
    b = state.get("momentum_buffer", np.zeros_like(p))
    mu = T(momentum)
    if lr_in_velocity:
        v = flush(mu * b - T(lr) * g)
        p = p + (mu * v - T(lr) * g) if nesterov else p + v
        return p, {"momentum_buffer": v}
    b = flush(mu * b + T(1.0 if t == 1 else 1 - dampening) * g)
    return p - T(lr) * (g + mu * b if nesterov else b), {"momentum_buffer": b}


def momentum(
    p: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float = 1e-3,
    beta: float = 0.9,
    weight_decay: float = 0.0,
    **shared: Any,
) -> tuple[Array, State]:
    """v = beta v + (1 - beta) g;  p -= lr v."""
    T = p.dtype.type
    g = fused(p, g, l2=weight_decay, **shared)
    v = state.get("momentum_buffer", np.zeros_like(p))
    v = flush(T(beta) * v + T(1 - beta) * g)
    return p - T(lr) * v, {"momentum_buffer": v}


def rmsprop(
    p: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
    eps_inside_sqrt: bool = False,
    **shared: Any,
) -> tuple[Array, State]:
    """s = alpha s + (1 - alpha) g^2;  p -= lr g / (sqrt(s) + eps).

    `centered` takes the variance s - mean^2 (not below 0) for s; with `momentum`, b = momentum b + g / (...)
    and p -= lr b; `eps_inside_sqrt` puts eps under the root.
    """
    T = p.dtype.type
    g = fused(p, g, l2=weight_decay, **shared)
    zeros = np.zeros_like(p)
    inside, outside = (T(eps), T(0)) if eps_inside_sqrt else (T(0), T(eps))
    s = flush(T(alpha) * state.get("square_avg", zeros) + T(1 - alpha) * g * g)
    new: State = {"square_avg": s}
    variance = s
    if centered:
        mean = flush(T(alpha) * state.get("grad_avg", zeros) + T(1 - alpha) * g)
        variance = larger(s - mean * mean, zeros)
        new["grad_avg"] = mean
    d = g / (np.sqrt(variance + inside) + outside)
    if momentum != 0:
        d = flush(T(momentum) * state.get("momentum_buffer", zeros) + d)
        new["momentum_buffer"] = d
    return p - T(lr) * d, new


def adagrad(
    p: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float = 1e-2,
    lr_decay: float = 0.0,
    weight_decay: float = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
    eps_inside_sqrt: bool = False,
    **shared: Any,
) -> tuple[Array, State]:
    """s += g^2;  p -= lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps); `eps_inside_sqrt`: sqrt(s + eps)."""
    T = p.dtype.type
    g = fused(p, g, l2=weight_decay, **shared)
    inside, outside = (T(eps), T(0)) if eps_inside_sqrt else (T(0), T(eps))
    s = state.get("sum", np.full_like(p, initial_accumulator_value))
    s = flush(s + g * g)
    rate = T(lr / (1 + (t - 1) * lr_decay))
    return p - rate * g / (np.sqrt(s + inside) + outside), {"sum": s}


def _adam(
    p: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    amsgrad: bool,
    epsilon_hat: bool,
    decoupled_decay: float,
) -> tuple[Array, State]:
    T = p.dtype.type
    beta1, beta2 = betas
    zeros = np.zeros_like(p)
    correction1, sqrt_correction2 = 1 - power(beta1, t), math.sqrt(1 - power(beta2, t))
    m = flush(T(beta1) * state.get("exp_avg", zeros) + T(1 - beta1) * g)
    v = flush(T(beta2) * state.get("exp_avg_sq", zeros) + T(1 - beta2) * g * g)
    new: State = {"exp_avg": m, "exp_avg_sq": v}
    v_hat = v
    if amsgrad:
        v_hat = larger(state.get("max_exp_avg_sq", zeros), v)
        new["max_exp_avg_sq"] = v_hat
    if epsilon_hat:
        step_size, root = T(lr * sqrt_correction2 / correction1), np.sqrt(v_hat)
    else:
        step_size, root = T(lr / correction1), np.sqrt(v_hat) * T(1 / sqrt_correction2)
    return p * T(1 - lr * decoupled_decay) - step_size * m / (root + T(eps)), new


def adam(
    p: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    epsilon_hat: bool = False,
    **shared: Any,
) -> tuple[Array, State]:
    """m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  p -= lr m_hat / (sqrt(v_hat) + eps).

    m_hat = m / (1 - b1^t), v_hat = v / (1 - b2^t); `amsgrad` takes the largest v so far;
    `epsilon_hat`: p -= lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps).
    """
    g = fused(p, g, l2=weight_decay, **shared)
    return _adam(p, g, state, t, lr=lr, betas=betas, eps=eps, amsgrad=amsgrad, epsilon_hat=epsilon_hat,
                 decoupled_decay=0.0)  # fmt: skip


def adamw(
    p: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    amsgrad: bool = False,
    epsilon_hat: bool = False,
    **shared: Any,
) -> tuple[Array, State]:
    """Adam, with p (1 - lr weight_decay) for p instead of a penalty."""
    g = fused(p, g, **shared)
    return _adam(p, g, state, t, lr=lr, betas=betas, eps=eps, amsgrad=amsgrad, epsilon_hat=epsilon_hat,
                 decoupled_decay=weight_decay)  # fmt: skip


def nadam(
    p: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum_decay: float = 4e-3,
    decoupled_weight_decay: bool = False,
    l2: float = 0.0,
    **shared: Any,
) -> tuple[Array, State]:
    """Adam with Nesterov's momentum, mu_t = b1 (1 - 0.96^(t momentum_decay) / 2):

    p -= lr ((1 - mu_t) / (1 - mu_1 ... mu_t) g + mu_t+1 / (1 - mu_1 ... mu_t+1) m) / (sqrt(v_hat) + eps).
    """
    T = p.dtype.type
    beta1, beta2 = betas
    g = fused(p, g, l2=l2 if decoupled_weight_decay else l2 + weight_decay, **shared)
    decay = T(1 - lr * weight_decay) if decoupled_weight_decay else T(1)

    def mu(t: int) -> float:
        log_096 = float.fromhex("-0x1.4e69ed6d80eaep-5")
        return beta1 * (1 - 0.5 * float(exp(np.float64(t * momentum_decay * log_096))))

    mu_product = state.get("mu_product", 1.0) * mu(t)
    step_g = T(lr * (1 - mu(t)) / (1 - mu_product))
    step_m = T(lr * mu(t + 1) / (1 - mu_product * mu(t + 1)))
    zeros = np.zeros_like(p)
    m = flush(T(beta1) * state.get("exp_avg", zeros) + T(1 - beta1) * g)
    v = flush(T(beta2) * state.get("exp_avg_sq", zeros) + T(1 - beta2) * g * g)
    root = np.sqrt(v) * T(1 / math.sqrt(1 - power(beta2, t)))
    p = p * decay - (step_g * g + step_m * m) / (root + T(eps))
    return p, {"exp_avg": m, "exp_avg_sq": v, "mu_product": mu_product}


def lion(
    p: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    **shared: Any,
) -> tuple[Array, State]:
    """p = p (1 - lr weight_decay) - lr sgn(b1 m + (1 - b1) g);  m = b2 m + (1 - b2) g."""
    T = p.dtype.type
    beta1, beta2 = betas
    g = fused(p, g, **shared)
    m = state.get("exp_avg", np.zeros_like(p))
    p = p * T(1 - lr * weight_decay) - T(lr) * sgn(T(beta1) * m + T(1 - beta1) * g)
    return p, {"exp_avg": flush(T(beta2) * m + T(1 - beta2) * g)}


RULES: dict[str, Callable[..., tuple[Array, State]]] = {
    "SGD": sgd,
    "Momentum": momentum,
    "RMSprop": rmsprop,
    "Adagrad": adagrad,
    "Adam": adam,
    "AdamW": adamw,
    "NAdam": nadam,
    "Lion": lion,
}
