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

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
State: TypeAlias = dict[str, Any]

SUM_BLOCK = 2048  # a sum is made over blocks of so many elements
LANES = 8  # within a block in so many lanes,
SHORT = 32  # unless the block is shorter than this


# ---------------------------------------------------------------------------------------------
# What the rules share


def flush(x: Array) -> Array:
    """A state smaller than the smallest normal number becomes +0: it would slow every later step."""
    return np.where(np.abs(x) < np.finfo(x.dtype).tiny, x.dtype.type(0), x)


def sgn(x: Array) -> Array:
    """+1, -1, +0 for both zeros, NaN for NaN."""
    one = x.dtype.type(1)
    with np.errstate(invalid="ignore"):
        return np.where(x > 0, one, np.where(x < 0, -one, x - x))


def larger(a: Array, b: Array) -> Array:
    return np.where(a <= b, b, a)


def power(base: float, n: int) -> float:
    """base**n by squaring: the C library's pow differs between machines."""
    result = 1.0
    while n:
        if n & 1:
            result *= base
        base *= base
        n >>= 1
    return result


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
    x = np.where(x < -bound, -bound, np.where(x > bound, bound, x))
    if T(l1) == 0 and T(l2) == 0:
        return x
    return x + T(l1) * sgn(p) + T(l2) * p


def clip_factor(norm: float, max_norm: float | None) -> float:
    """min(1, max_norm / (norm + 1e-6)); not a number if the norm is not."""
    if max_norm is None:
        return 1.0
    factor = max_norm / (norm + 1e-6)
    return 1.0 if factor > 1 else factor


# ---------------------------------------------------------------------------------------------
# The rules


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


# ---------------------------------------------------------------------------------------------
# exp and log


class _Float:
    """The constants of exp and log for a dtype."""

    def __init__(self, bits: type, mantissa: int, bias: int, ln2: tuple[str, str], sqrt_half: int,
                 exp_range: tuple[float, float], exp_poly: str, log_poly: str) -> None:  # fmt: skip
        self.bits, self.mantissa, self.bias, self.sqrt_half = bits, mantissa, bias, sqrt_half
        self.T = np.float32 if bits is np.uint32 else np.float64
        self.magic = self.T(1.5 * 2.0**mantissa)  # adding it rounds to an integer, in the low bits
        self.log2_e = self.T(float.fromhex("0x1.71547652b82fep+0"))
        self.ln2_hi, self.ln2_lo = (self.T(float.fromhex(x)) for x in ln2)
        self.exp_lowest, self.exp_highest = (self.T(x) for x in exp_range)
        self.exp_poly, self.log_poly = (
            [self.T(float.fromhex(c)) for c in poly.split()] for poly in (exp_poly, log_poly)
        )


_FLOATS = {
    np.dtype(np.float32): _Float(
        np.uint32, 23, 127, ("0x1.63p-1", "-0x1.bd0106p-13"), 0x3F3504F3, (-105, 89),
        "0x1p-1 0x1.5554dcp-3 0x1.55551ap-5 0x1.120b6ep-7 0x1.6d110ap-10",
        "0x1.555556p-1 0x1.9999ecp-2 0x1.245c38p-2 0x1.ddd172p-3",
    ),
    np.dtype(np.float64): _Float(
        np.uint64, 52, 1023, ("0x1.62e42feep-1", "0x1.a39ef35793c76p-33"), 0x3FE6A09E667F3BCD, (-746, 710),
        "0x1p-1 0x1.5555555555557p-3 0x1.5555555555556p-5 0x1.11111111100dcp-7 0x1.6c16c16c162d4p-10 "
        "0x1.a01a01abe7fe1p-13 0x1.a01a01a6d889cp-16 0x1.71de0231960ebp-19 0x1.27e4db646b17ep-22 "
        "0x1.af4de97ca4194p-26 0x1.1f730349868cep-29",
        "0x1.5555555555558p-1 0x1.99999999952b2p-2 0x1.2492492df6947p-2 0x1.c71c62debf86bp-3 "
        "0x1.7462b69705382p-3 0x1.39fe208c33457p-3 0x1.2b5b5fb2eac92p-3",
    ),
}  # fmt: skip


def _polynomial(coefficients: Sequence[Any], x: Any) -> Any:
    y = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        y = c + x * y
    return y


def exp(x: Any) -> Any:
    """e^x = 2^k e^r with r = x - k ln(2); within 1.2 ULP, subnormal results included."""
    x = np.asarray(x)
    f = _FLOATS[x.dtype]
    U = f.bits
    with np.errstate(all="ignore"):
        x = np.where(x < f.exp_lowest, f.exp_lowest, np.where(x > f.exp_highest, f.exp_highest, x))
        shifted = x * f.log2_e + f.magic
        k = shifted - f.magic
        r = (x - k * f.ln2_hi) - k * f.ln2_lo
        y = f.T(1) + (r + r * r * _polynomial(f.exp_poly, r))
        n = shifted.view(U) - f.magic.view(U)
        half = ((n + U(4 * f.bias)) >> U(1)) - U(2 * f.bias)
        for part in (half, n - half):  # 2^k in two factors: a subnormal result is rounded once
            y = y * ((part + U(f.bias)) << U(f.mantissa)).view(f.T)
    return y


def log(x: Any) -> Any:
    """log(2^k m) = k ln(2) + log(m), m in [sqrt(1/2), sqrt(2)); within 1 ULP."""
    x = np.asarray(x)
    f = _FLOATS[x.dtype]
    U, T = f.bits, f.T
    up = f.mantissa + 1 if T is np.float32 else 54
    one, fraction = U(f.bias << f.mantissa), U((1 << f.mantissa) - 1)
    with np.errstate(all="ignore"):
        subnormal = x < np.finfo(T).tiny
        b = np.where(subnormal, x * T(2.0**up), x).view(U) + (one - U(f.sqrt_half))
        k = (f.magic.view(U) + (b >> U(f.mantissa))).view(T) - f.magic
        k = k - T(f.bias) - np.where(subnormal, T(up), T(0))
        m = ((b & fraction) + U(f.sqrt_half)).view(T) - T(1)
        s = m / (T(2) + m)
        z = s * s
        half = T(0.5) * m * m
        tail = s * (half + z * _polynomial(f.log_poly, z)) + k * f.ln2_lo
        y = k * f.ln2_hi - ((half - tail) - m)
        inf = T(np.inf)
        special = np.where(x == 0, -inf, np.where(x == inf, x, T(np.nan)))
        return np.where((x > 0) & (x < inf), y, special)


def log1p(x: Any) -> Any:
    """log(1 + x) for x >= 0, keeping the digits of a small x."""
    x = np.asarray(x)
    one = x.dtype.type(1)
    with np.errstate(all="ignore"):
        u = one + x
        return np.where(u < np.inf, log(u) + (x - (u - one)) / u, u)


# ---------------------------------------------------------------------------------------------
# Sums: one order of additions, in double, for every ISA and any number of threads


def _add(hi: Any, lo: Any, x: Any) -> tuple[Any, Any]:
    """What rounding loses of a float64 goes to lo (Knuth's two-sum)."""
    if x.dtype == np.float32:
        return hi + x, lo
    s = hi + x
    t = s - hi
    return s, lo + ((hi - (s - t)) + (x - t))


def _row_sums(terms: Array) -> tuple[Array, Array]:
    """(rows, n) -> hi and lo of each row's sum, in eight lanes if n >= 32."""
    rows, n = terms.shape
    lanes = LANES if n >= SHORT else 1
    hi, lo = np.zeros((rows, lanes)), np.zeros((rows, lanes))
    with np.errstate(all="ignore"):
        for i in range(0, n, lanes):
            part = terms[:, i : i + lanes]
            w = part.shape[1]
            hi[:, :w], lo[:, :w] = _add(hi[:, :w], lo[:, :w], part)
        while lanes > 1:
            lanes //= 2
            a, b = _add(hi[:, :lanes], lo[:, :lanes], hi[:, lanes:])
            hi, lo = a, b + lo[:, lanes:]
    return hi[:, 0], lo[:, 0]


def _value(hi: Any, lo: Any) -> Any:
    with np.errstate(all="ignore"):
        x = hi + lo
        return np.where(np.isfinite(x), x, hi)


def _combine(parts: Sequence[tuple[Any, Any]]) -> float:
    """The sum of (hi, lo) pairs, one after the other."""
    hi, lo = np.float64(0), np.float64(0)
    with np.errstate(all="ignore"):
        for h, low in parts:
            s = hi + h
            t = s - hi
            hi, lo = s, lo + (((hi - (s - t)) + (h - t)) + low)
    return float(_value(hi, lo))


def _block_sums(terms: Array) -> list[tuple[Any, Any]]:
    whole = terms.size // SUM_BLOCK * SUM_BLOCK
    parts: list[tuple[Any, Any]] = []
    for rows in (terms[:whole].reshape(-1, SUM_BLOCK), terms[whole:].reshape(1, -1)):
        if rows.size:
            parts += zip(*_row_sums(rows), strict=True)
    return parts


def total(terms: Array) -> float:
    """The sum of all elements."""
    return _combine(_block_sums(terms.ravel()))


def global_norm(arrays: Sequence[Array]) -> float:
    """sqrt(sum of squares) over all arrays; rescaled where squares leave the range of double."""

    def squares(scale: float) -> float:
        parts: list[tuple[Any, Any]] = []
        with np.errstate(all="ignore"):
            for x in arrays:
                y = x.ravel(order="K").astype(np.float64) * scale
                parts += _block_sums(y * y)
        return _combine(parts)

    sum_, scale = squares(1.0), 1.0
    has_double = any(x.dtype == np.float64 for x in arrays)
    if has_double and (not math.isfinite(sum_) or sum_ < 2.0**-900):
        scale = 2.0**600 if math.isfinite(sum_) else 2.0**-600
        sum_ = squares(scale)
    return math.sqrt(sum_) / scale


# ---------------------------------------------------------------------------------------------
# Losses with their gradient


def _scale(reduction: str, weight: float) -> float:
    """What the sum is multiplied with."""
    return 1.0 if reduction == "sum" else 1 / weight if weight > 0 else 0.0


def _elementwise(
    terms: Array, derivative: Array, x: Array, reduction: str, sample_weight: Array | None
) -> tuple[float, Array, Array]:
    """The loss, its gradient, and the weighted terms that were summed (all in double)."""
    inner = 1
    if sample_weight is None:
        total_weight = float(x.size)
        scale = _scale(reduction, total_weight)
        gradient = derivative * scale
    else:
        inner = x.size // max(sample_weight.size, 1)
        total_weight = total(sample_weight) * inner
        scale = _scale(reduction, total_weight)
        spread = sample_weight.reshape(sample_weight.shape + (1,) * (x.ndim - sample_weight.ndim))
        w = np.broadcast_to(spread, x.shape).astype(np.float64)
        with np.errstate(all="ignore"):
            terms = np.where(w == 0, 0.0, terms * w)
            gradient = np.where(w == 0, 0.0, derivative * (w * scale))
    loss = total(terms)
    with np.errstate(over="ignore"):
        return loss * scale if reduction == "mean" else loss, gradient.astype(x.dtype), terms


def mse(
    prediction: Array, target: Array, *, reduction: str = "mean", sample_weight: Array | None = None
) -> tuple[float, Array, Array]:
    """Mean (or sum) of w (prediction - target)^2, its gradient, and the terms."""
    with np.errstate(all="ignore"):
        d = prediction.astype(np.float64) - target.astype(np.float64)
        return _elementwise(d * d, 2 * d, prediction, reduction, sample_weight)


def binary_cross_entropy(
    logits: Array, target: Array, *, reduction: str = "mean", sample_weight: Array | None = None
) -> tuple[float, Array, Array]:
    """Mean (or sum) of -y log(sigmoid(x)) - (1 - y) log(sigmoid(-x)), its gradient, and the terms.

    As |x| wrong + log(1 + e), e = exp(-|x|), `wrong` being the share of the target on the side that
    the sign of x denies; the derivative is +-(wrong - e right) / (1 + e). Nothing cancels.
    """
    x, y = logits, target
    one, zero = x.dtype.type(1), x.dtype.type(0)
    with np.errstate(all="ignore"):
        e = exp(-np.abs(x))
        wrong, right = np.where(x >= 0, one - y, y), np.where(x >= 0, y, one - y)
        slope = (wrong - e * right) / (one + e)
        terms = np.where(wrong == 0, zero, np.abs(x) * wrong) + log1p(e)
        derivative = np.where(x >= 0, slope, -slope)
        return _elementwise(
            terms.astype(np.float64), derivative.astype(np.float64), x, reduction, sample_weight
        )


def softmax_cross_entropy(
    logits: Array,
    labels: Array,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    reduction: str = "mean",
    sample_weight: Array | None = None,
) -> tuple[float, Array, Array]:
    """Mean (or sum) over rows of -sum t log(softmax(x)), its gradient, and the rows' terms.

    With e = exp(x - max), S = sum e, Q = sum t: loss = Q log(S) + sum t (max - x) and gradient
    (e Q - t S) / S. Elements of e equal to 1 are counted apart from the rest of S, so that a confident
    right answer keeps its digits. Classes at -infinity take no part in the smoothing.
    """
    shape, dtype = logits.shape, logits.dtype
    T, n = dtype.type, logits.shape[-1]
    x = logits.reshape(-1, n)
    rows = np.arange(len(x))
    weight = np.ones(len(x)) if sample_weight is None else sample_weight.ravel().astype(np.float64)
    is_label = labels.dtype.kind in "iu"
    y = labels.ravel().astype(np.int64) if is_label else np.zeros(len(x), np.int64)
    if ignore_index is not None:
        weight = np.where(y == ignore_index, 0, weight)
        y = np.where(y == ignore_index, 0, y)
    weight_sum = 0.0
    for w in weight.tolist():
        weight_sum += w
    scale = _scale(reduction, weight_sum) * weight
    keep, zero = 1 - label_smoothing, T(0)

    def sums(terms: Array) -> Array:
        return np.asarray(_value(*_row_sums(terms)))

    with np.errstate(all="ignore"):
        top = np.max(np.where(np.isnan(x), T(-np.inf), x), axis=1)
        d = x - top[:, None]
        masked = d == -np.inf
        e = np.where(masked, zero, exp(d))
        count = np.count_nonzero(e == 1, axis=1)
        rest = sums(np.where(e == 1, zero, e)) + (count - 1.0)
        whole = rest + 1
        uniform = np.zeros(len(x))
        to_all = np.zeros(len(x))
        if label_smoothing:
            uniform = label_smoothing / np.count_nonzero(~masked, axis=1)
            to_all = sums(np.where(masked, zero, -d))
        mass = np.ones(len(x))
        if is_label:
            to_label = top.astype(np.float64) - x[rows, y].astype(np.float64)
            even = (uniform * scale).astype(dtype)[:, None]
            gradient = e * (scale / whole).astype(dtype)[:, None] - np.where(masked, zero, even)
            smoothed = label_smoothing - np.where(masked[rows, y], 0, uniform)
            missing = (rest + (1 - e[rows, y].astype(np.float64))) / whole
            gradient[rows, y] = ((smoothed - missing) * scale).astype(dtype)
        else:
            q = labels.reshape(-1, n)
            mass = keep * sums(q) + label_smoothing
            products = -q.astype(np.float64) * d.astype(np.float64)
            to_label = sums(np.where(q == 0, 0.0, products))
            t = T(keep) * q + np.where(masked, zero, uniform.astype(dtype)[:, None])
            mass_t, rest_t, whole_t = (a.astype(dtype)[:, None] for a in (mass, rest, whole))
            numerator = np.where(e == 1, (mass_t - t) - t * rest_t, e * mass_t - t * whole_t)
            gradient = numerator * (scale / whole).astype(dtype)[:, None]
        losses = mass * log1p(rest) + (keep * to_label + uniform * to_all)
        terms = np.where(weight == 0, 0.0, weight * losses)
    gradient[weight == 0] = 0
    per_block = max(1, SUM_BLOCK // n)
    blocks = []
    for first in range(0, len(terms), per_block):
        hi, lo = np.float64(0), np.float64(0)
        for term, w in zip(
            terms[first : first + per_block], weight[first : first + per_block], strict=True
        ):
            if w != 0:
                hi, lo = (np.float64(a) for a in _add(hi, lo, term))
        blocks.append((hi, lo))
    loss = _combine(blocks)
    return (
        loss * _scale("mean", weight_sum) if reduction == "mean" else loss,
        gradient.reshape(shape),
        terms,
    )


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
