"""exp, log and the small functions that the kernels share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from steepest.reference.arithmetic import Array, multiply_add


def flush(x: Array) -> Array:
    """A state smaller than the smallest normal number becomes +0: it would slow every later step."""
    return np.where(np.abs(x) < np.finfo(x.dtype).tiny, x.dtype.type(0), x)


def sgn(x: Array) -> Array:
    """+1, -1, +0 for both zeros, NaN for NaN."""
    one = x.dtype.type(1)
    with np.errstate(invalid="ignore"):
        return np.where(x > 0, one, np.where(x < 0, -one, x - x))


def larger(a: Array, b: Array) -> Array:
    """b where a <= b, else a."""
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
        np.uint32, 23, 127, ("0x1.62e4p-1", "0x1.7f7ep-20"), 0x3F3504F3, (-105, 89),
        "0x1p-1 0x1.5554dcp-3 0x1.55551ap-5 0x1.120b6ep-7 0x1.6d110ap-10",
        "0x1.555556p-1 0x1.9999ecp-2 0x1.245c38p-2 0x1.ddd172p-3",
    ),
    np.dtype(np.float64): _Float(
        np.uint64, 52, 1023, ("0x1.62e42feep-1", "0x1.a39ef35794p-33"), 0x3FE6A09E667F3BCD, (-746, 710),
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
        y = multiply_add(x, y, c)
    return y


def exp(x: Any) -> Any:
    """e^x = 2^k e^r with r = x - k ln(2); within 1.2 ULP, subnormal results included."""
    x = np.asarray(x)
    f = _FLOATS[x.dtype]
    U = f.bits
    with np.errstate(all="ignore"):
        x = np.where(x < f.exp_lowest, f.exp_lowest, np.where(x > f.exp_highest, f.exp_highest, x))
        shifted = multiply_add(x, f.log2_e, f.magic)
        k = shifted - f.magic
        r = (x - k * f.ln2_hi) - k * f.ln2_lo  # whose products are exact
        y = f.T(1) + multiply_add(r * r, _polynomial(f.exp_poly, r), r)
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
        tail = s * multiply_add(z, _polynomial(f.log_poly, z), half) + k * f.ln2_lo
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


def sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x), keeping the digits of small results; within 3 ULP."""
    x = np.asarray(x)
    one = x.dtype.type(1)
    e = exp(-np.abs(x))
    return np.where(x >= 0, one, e) / (one + e)


def tanh(x: Any) -> Any:
    """-t / (t + 2) with t = e^(-2|x|) - 1 = 2^k p + (2^k - 1); within 4 ULP."""
    x = np.asarray(x)
    f = _FLOATS[x.dtype]
    U, T = f.bits, f.T
    with np.errstate(all="ignore"):
        size = np.abs(x)
        far = T(20 if T is np.float32 else 44)
        y = T(-2) * np.where(size > far, far, size)
        shifted = multiply_add(y, f.log2_e, f.magic)
        k = shifted - f.magic
        r = (y - k * f.ln2_hi) - k * f.ln2_lo
        p = multiply_add(r * r, _polynomial(f.exp_poly, r), r)
        two_k = ((shifted.view(U) - f.magic.view(U) + U(f.bias)) << U(f.mantissa)).view(T)
        t = two_k * p + (two_k - T(1))
        result = -t / (t + T(2))
        return np.where(x < 0, -result, np.where(x == 0, x, result))
