"""Numbers in fewer bytes than float32, and rules whose state is kept so.

A bfloat16 is the upper half of a float32's bits. An 8-bit code is a magnitude of its own: five bits of exponent and
three of mantissa or, of numbers with a sign, four and four; 256 of them, a group, share a float32 scale, which is the
number of the highest code. Whatever the scale, a code is the upper 12 (13) bits of the float32 less those of the scale.
A sign makes nine bits: a byte has all but the last one, which stands in an array of bits, eight to a byte.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from steepest.reference.arithmetic import Array

GROUP = 256  # elements that share a scale
SHARING = 32  # elements that share half as many hashes
SMALLEST = 4096  # elements; smaller arrays keep their state in float32
SQUARES = "exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"  # never negative, and slow to change

_U = np.uint32
_SIZE, _INFINITE, _NAN = _U(0x7FFFFFFF), _U(0x7F800000), _U(0x7FC00000)
_RANDOM = 20  # random bits of an element whose state is in 8-bit codes
_HIGHEST = _U(253)  # code of a finite number


def random_bits(n: int, seed: int, step: int, bits: int, first: int = 0) -> Array:
    """So many random bits (for bfloat16 16, for codes 20) for each of n elements: of a seed, a tensor's step and it.

    For each element they are independent from step to step; the upper ones are the best. Elements i and i + 16
    of 32 share a hash, of which they take the upper and the lower end. All arrays of a state have the same bits.
    """
    index = np.arange(first, first + n, dtype=np.uint64)
    block, place = np.divmod(index.astype(_U), _U(SHARING))
    half = _U(SHARING // 2)
    with np.errstate(over="ignore"):
        key = _hash(_U(seed))
        for part in (step & 0xFFFFFFFF, step >> 32):
            key = _hash(key + _U(part))
        x = (_hash(key + (index >> np.uint64(32)).astype(_U)) + block * half + place % half) * _U(0x9E3779B1)
        x = (x ^ (x >> _U(15))) * _U(0xD35A2D97)
    return np.asarray(np.where(place < half, x >> _U(32 - bits), x & _U((1 << bits) - 1)))


def _hash(x: Any) -> Any:
    x = (x ^ (x >> _U(16))) * _U(0x21F0AAAD)
    x = (x ^ (x >> _U(15))) * _U(0xD35A2D97)
    return x ^ (x >> _U(15))


def _rounded(b: Array, dropped: int, random: Array | None) -> Array:
    """b's upper bits: to nearest, ties to even, or by as many random bits as are cut off."""
    d = _U(dropped)
    up = _U((1 << (dropped - 1)) - 1) + (b >> d & _U(1)) if random is None else random
    return np.asarray((b + up) >> d)


def to_bfloat16(x: Array, random: Array | None = None) -> Array:
    """The bits (uint16) of float32 as bfloat16: to nearest, ties to even, or by random bits."""
    b = x.view(_U)
    return _rounded(np.where(b & _SIZE > _INFINITE, _NAN, b), 16, random).astype(np.uint16)


def from_bfloat16(code: Array) -> Array:
    return (code.astype(_U) << _U(16)).view(np.float32)


def split(x: Array) -> tuple[Array, Array]:
    """float32 as bfloat16 (to nearest, ties away from zero) and the correction (int16) that `join` needs."""
    b = x.view(_U)
    b = np.where(b & _SIZE > _INFINITE, _NAN, b)
    return ((b + _U(0x8000)) >> _U(16)).astype(np.uint16), (b & _U(0xFFFF)).astype(np.uint16).view(np.int16)


def join(code: Array, correction: Array) -> Array:
    """The float32 that was split; a zero that was put there by hand is zero."""
    c = np.where(((code & np.uint16(0x7FFF)) == 0) & (correction < 0), 0, correction.astype(np.int32))
    return ((code.astype(_U) << _U(16)) + c.astype(np.int32).view(_U)).view(np.float32)


def _dropped(signed: bool) -> int:
    """The bits of a float32 that an 8-bit code does not have."""
    return 19 if signed else 20


def to_8bit(x: Array, signed: bool, random: Array | None = None) -> tuple[Array, Array, Array | None]:
    """The codes (uint8) of float32 numbers, in one dimension, the groups' scales, and if `signed` the codes' last bits.

    A number that is not 0 but below all codes becomes 0 if `signed`, else the lowest one that is not. A negative scale
    says that some of its group are infinity or NaN, the two highest codes.
    """
    dropped = _dropped(signed)
    infinite = _INFINITE >> _U(dropped)
    groups = -(-x.size // GROUP)
    b = np.zeros((groups, GROUP), _U)
    b.ravel()[: x.size] = x.view(_U)
    size = b & _SIZE
    upper = _rounded(size, dropped, None if random is None else np.resize(random, b.shape) >> _U(_RANDOM - dropped))
    finite = size < _INFINITE
    largest = np.where(finite, size, _U(0)).max(axis=1, keepdims=True, initial=0)
    top = (largest + _U((1 << dropped) - 1)) >> _U(dropped)
    special = (top >= infinite) | ~finite.all(axis=1, keepdims=True)
    top = np.where(top < infinite, top, infinite - _U(1))
    least = _U((1 << (23 - dropped)) - 1) + _HIGHEST  # a code of 1 is a normal number
    top = np.where(top > least, top, least)
    above = (upper - (top - _HIGHEST)).view(np.int32)
    lowest = np.where(upper == 0, 0, 0 if signed else 1).astype(np.int32)
    code = np.where(above > lowest, above, lowest).astype(_U)
    code = np.where(special & (code > _HIGHEST), _HIGHEST, code)
    code = np.where(finite, code, _HIGHEST + _U(1) + (size > _INFINITE)).ravel()[: x.size]
    scale = (top.ravel() << _U(dropped) | np.where(special.ravel(), ~_SIZE, _U(0))).view(np.float32)
    if not signed:
        return code.astype(np.uint8), scale, None
    codes = code >> _U(1) | (b.ravel()[: x.size] >> _U(24) & _U(0x80))
    return codes.astype(np.uint8), scale, np.packbits((code & _U(1)).astype(np.uint8), bitorder="little")


def from_8bit(codes: Array, scales: Array, bits: Array | None) -> Array:
    """The numbers of codes, which have a sign if there are last bits."""
    signed = bits is not None
    dropped = _dropped(signed)
    b = np.repeat(scales.view(_U), GROUP)[: codes.size]
    code = codes.astype(_U)
    if bits is not None:
        code = (code & _U(0x7F)) << _U(1) | np.unpackbits(bits, count=codes.size, bitorder="little").astype(_U)
    with np.errstate(over="ignore"):
        upper = code + ((b & _SIZE) >> _U(dropped)) - _HIGHEST
        infinite = _INFINITE >> _U(dropped)
        upper = np.where((b > _SIZE) & (code > _HIGHEST), code + (infinite - _HIGHEST - _U(1)), upper)
    size = np.where(code == 0, _U(0), upper << _U(dropped))
    return (size | (codes.astype(_U) & _U(0x80)) << _U(24) if signed else size).view(np.float32)


def low_precision(
    rule: Callable[..., tuple[Array, dict[str, Any]]],
    p: Array,
    g: Array,
    state: dict[str, Any],
    t: int,
    *,
    state_dtype: str,
    seed: int | None = 0,
    **options: Any,
) -> tuple[Array, dict[str, Any]]:
    """A step of a rule whose state is kept as "bfloat16", "8bit" or "float32".

    p and g are float32, or bfloat16 as the bits in uint16; p then goes with `state["weight_correction"]` or
    `state["master_weights"]`. Averages of squares are rounded stochastically, with 8 bits the others too, unless
    `seed` is None. What Adagrad's state is filled with is rounded to nearest.
    """
    if p.size < SMALLEST:
        state_dtype = "float32"
    kept = {name: value for name, value in state.items() if not name.endswith(("_scale", "_bits"))}
    masters = {name: kept.pop(name) for name in ("master_weights", "weight_correction") if name in kept}
    for name, value in kept.items():
        if state_dtype == "bfloat16" and isinstance(value, np.ndarray):
            kept[name] = from_bfloat16(value)
        elif state_dtype == "8bit" and isinstance(value, np.ndarray):
            kept[name] = from_8bit(value, state[f"{name}_scale"], state.get(f"{name}_bits"))
    if not kept and "initial_accumulator_value" in options:
        filled = np.full(p.size, options["initial_accumulator_value"], np.float32)
        if state_dtype == "bfloat16":
            filled = from_bfloat16(to_bfloat16(filled))
        elif state_dtype == "8bit":
            filled = from_8bit(*to_8bit(filled, signed=False))
        kept["sum"] = filled
    if "master_weights" in masters:  # where p was changed by hand, it holds
        x = np.where(split(masters["master_weights"])[0] == p, masters["master_weights"], from_bfloat16(p))
    else:
        x = join(p, masters["weight_correction"]) if masters else p
    x, new = rule(x, from_bfloat16(g) if masters else g, kept, t, **options)

    bits = 16 if state_dtype == "bfloat16" else _RANDOM
    random = None if seed is None else random_bits(x.size, seed, t, bits)
    for name in [name for name, value in new.items() if isinstance(value, np.ndarray)]:
        if state_dtype == "bfloat16":
            squares = name in SQUARES  # a NaN where the sign says that it is negative
            value = np.minimum(new[name].view(_U), _NAN).view(np.float32) if squares else new[name]
            new[name] = to_bfloat16(value, random if squares else None)
        elif state_dtype == "8bit":
            new[name], new[f"{name}_scale"], last_bits = to_8bit(new[name], name not in SQUARES, random)
            if last_bits is not None:
                new[f"{name}_bits"] = last_bits
    if "master_weights" in masters:
        return split(x)[0], {**new, "master_weights": x}
    if masters:
        p, new["weight_correction"] = split(x)
        return p, new
    return x, new
