"""The optimizers' state: in PyTorch's dtypes, or in 8 bits."""

from __future__ import annotations

from typing import Any

import torch

from steepest.reference.codecs import from_8bit, to_8bit
from steepest.torch._tensors import filled_like, flat, is_dense, laid_out_as, lies_as

CODE, SCALE, BITS = "_code", "_scale", "_bits"  # of state in 8 bits: what its names end with
_GROUP = 256  # codes that share a scale


def is_signed(name: str) -> bool:
    """Whether codes of this state have a sign: sums and averages of squares have none."""
    return not (name == "sum" or "_sq" in name or name == "square_avg")


def _parts(name: str, target: Any) -> dict[str, tuple[Any, Any]]:
    """What the names of a coded state's tensors end with, and the shape and dtype of each."""
    n = target.numel()
    parts = {CODE: (target.shape, torch.uint8), SCALE: ((-(-n // _GROUP),), torch.float32)}
    return parts | ({BITS: ((-(-n // 8),), torch.uint8)} if is_signed(name) else {})


def _coded(name: str, x: Any) -> dict[str, Any]:
    codes, *others = (torch.from_numpy(part) for part in to_8bit(flat(x), is_signed(name)) if part is not None)
    return dict(zip(_parts(name, x), (codes.as_strided(x.shape, x.stride()), *others), strict=True))


def _decoded(name: str, coded: dict[str, Any]) -> Any:
    codes, *others = (coded[end].to("cpu", dtype) for end, (_, dtype) in _parts(name, coded[CODE]).items())
    codes = codes if is_dense(codes) else codes.contiguous()
    scales, bits = (*(x.contiguous().numpy() for x in others), None)[:2]
    return torch.from_numpy(from_8bit(flat(codes), scales, bits)).as_strided(codes.shape, codes.stride())


def keep(kept: dict[str, Any], name: str, target: Any, dtype: Any, first: float) -> None:
    """Has the state of this name as the compiled optimizer takes it: in dtype (uint8: in codes), laid out as target."""
    parts = _parts(name, target)
    for end, shape in {"": target.shape, **{end: shape for end, (shape, _) in parts.items()}}.items():
        given = kept.get(name + end)
        if given is not None and given.shape != shape:
            raise ValueError(f"state: expected {name}{end} of shape {tuple(shape)}, got {tuple(given.shape)}")
    x = kept.get(name)
    coded: dict[str, Any] = {end: kept.get(name + end) for end in parts}
    lacking = [name + end for end, part in coded.items() if part is None]
    if x is None and 0 < len(lacking) < len(coded):
        raise ValueError(f"state: expected {', '.join(lacking)} beside the rest of {name} in 8 bits")
    is_coded = x is None and not lacking
    if is_coded and dtype == torch.uint8 and lies_as(target, coded[CODE], dtype):
        for end in parts.keys() - {CODE}:
            kept[name + end] = coded[end].to("cpu", parts[end][1]).contiguous()
        return
    if is_coded:
        x = _decoded(name, coded)
    for end in parts:
        kept.pop(name + end, None)
    if dtype != torch.uint8:
        kept[name] = filled_like(target, first, dtype) if x is None else laid_out_as(target, x, dtype)
        return
    kept.pop(name, None)
    if x is not None or first:
        x = filled_like(target, first, target.dtype) if x is None else laid_out_as(target, x)
        coded = _coded(name, x)
    else:
        flat = {end: torch.zeros(shape, dtype=of, device="cpu") for end, (shape, of) in parts.items() if end != CODE}
        coded = {CODE: filled_like(target, 0.0, dtype), **flat}
    kept.update({name + end: part for end, part in coded.items()})


def followed(master: Any, p: Any) -> Any:
    """The float32 copy of p with those elements of p's that are not its own rounded: elsewhere it has more digits."""
    changed = master.to(p.dtype) != p
    return torch.where(changed, p.to(master.dtype), master) if changed.any() else master
