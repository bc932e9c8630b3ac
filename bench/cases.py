"""The contests that `peers.py` runs: who competes, what counts, and where the bar is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import contenders
import interleaved
import steepest as sp
from contenders import Contest
from steepest import _core, benchmarks
from steepest.benchmarks import KERNELS, Contender

Mi = 1 << 20
ADAMW_SIZES = {"100": 100, "1000": 1000, "10240": 10_240, "102400": 102_400, "1Mi": Mi, "4Mi": 4 * Mi, "16Mi": 16 * Mi,
               "64Mi": 64 * Mi, "250M": 250_000_000}  # fmt: skip
WITH_ALL_PEERS = ("1000", "10240", "102400", "1Mi", "16Mi", "64Mi")
ADAMW = {"lr": 1e-3, "weight_decay": 0.01}
AVX2 = _core.build_info()["isa"] == "avx2"


class Figure(NamedTuple):
    """What a contest measures, from the seconds of ours and of the peer's call in a round."""

    unit: str
    of: Callable[[float, float], float]
    lower_is_better: bool = False


RATIO = Figure("x", lambda ours, peer: peer / ours)
SHARE = Figure("%", lambda ours, peer: 100 * peer / ours)
SLOWDOWN = Figure("of one thread", lambda ours, peer: ours / peer, lower_is_better=True)
MICROSECONDS = Figure("us", lambda ours, peer: 1e6 * ours, lower_is_better=True)


class Case(NamedTuple):
    """A contest: `make` gives ours and the peer, by name, in this order."""

    make: Callable[[], Contest | tuple[Contest, Callable[[str], object]]]
    bar: float | None = None
    figure: Figure = RATIO
    needs: tuple[str, ...] = ()  # packages
    memory: int = 0  # bytes
    import_first: str = ""  # a package to import before ours
    calls: int = 1  # steps in a call


def _against_numpy(kernel: str, n: int, peer: str) -> Contest:
    both = KERNELS[kernel].make(n)
    return {"ours": both["ours"], peer: both[peer]}


def _against_stream(kernel: str, n: int, dtype: str = "float32") -> Contest:
    """A loop that only adds, over arrays of as many bytes."""
    shape = KERNELS[kernel]
    if dtype == "float32":
        return {"ours": shape.make(n)["ours"], "stream": Contender(benchmarks.stream(shape, n), list)}
    start, gradient = ([a.astype(dtype)] for a in (benchmarks.random(n, 0), benchmarks.random(n, 1)))
    ours = contenders.steepest_step(RULES[kernel], start, gradient)
    return {"ours": ours, "stream": Contender(benchmarks.stream(shape, 2 * n), list)}


def _against_torch(
    make: Callable[..., sp.Optimizer], rule: str, kind: str, count: int, n: int, max_norm: float = 0, **options: Any
) -> Contest:
    start, gradients = (contenders.arrays(count, n, seed) for seed in (0, 1))
    ours = contenders.steepest_step(partial(make, **options, max_norm=max_norm or None), start, gradients)
    peer = contenders.torch_step(rule, kind, start, gradients, max_norm, **options)
    return {"ours": ours, f"torch {kind}": peer}


def _against_optax(n: int) -> Contest:
    start, gradients = (contenders.arrays(1, n, seed) for seed in (0, 1))
    ours = contenders.steepest_step(partial(sp.AdamW, **ADAMW), start, gradients)
    return {"ours": ours, "optax jit": contenders.optax_step(start[0], gradients[0], **ADAMW)}


def _alone(count: int, n: int) -> Contest:
    ours = contenders.steepest_step(sp.AdamW, *(contenders.arrays(count, n, seed) for seed in (0, 1)))
    return {"ours": ours, "nothing": Contender(lambda: None, list)}


RULES: dict[str, Callable[..., sp.Optimizer]] = {
    name: partial(sp.SGD, momentum=0.9) if name == "sgd_momentum" else getattr(sp, rule)
    for name, rule in {**{rule.lower(): rule for rule in sp.reference.RULES}, "sgd_momentum": "SGD"}.items()
}


def _adamw() -> Iterator[tuple[str, Case]]:
    """One array, every peer, every size."""
    fused = {"1000": 25, "10240": 6, "102400": 1.8, "1Mi": 1.2, "16Mi": 1.08, "64Mi": 1.05}
    adamw = partial(_against_torch, sp.AdamW, "AdamW")
    for size, n in ADAMW_SIZES.items():
        large = n >= Mi
        yield (
            f"adamw/{size}/stream",
            Case(partial(_against_stream, "adamw", n), None, SHARE, memory=44 * n),
        )
        torch = partial(Case, needs=("torch",), memory=44 * n)
        yield f"adamw/{size}/torch-fused", torch(partial(adamw, "fused", 1, n, **ADAMW), fused.get(size))
        if size not in WITH_ALL_PEERS:
            continue
        yield f"adamw/{size}/torch-foreach", torch(partial(adamw, "foreach", 1, n, **ADAMW), memory=60 * n)
        yield f"adamw/{size}/optax-jit", Case(partial(_against_optax, n), needs=("jax", "optax"), memory=60 * n)
        for peer, bar in (("numpy", 15), ("out=", 8)):
            make = partial(_against_numpy, "adamw", n, peer)
            yield f"adamw/{size}/{peer}", Case(make, bar if large else None, memory=80 * n)


def _streams() -> Iterator[tuple[str, Case]]:
    """The share of the stream that every rule reaches."""
    for rule in RULES:
        for size in ("16Mi", "64Mi"):
            n = ADAMW_SIZES[size]
            yield f"stream/{rule}/{size}", Case(partial(_against_stream, rule, n), 92, SHARE, memory=80 * n)
        n = ADAMW_SIZES["16Mi"]
        make = partial(_against_stream, rule, n, "float64")
        yield f"stream/{rule}/16Mi-float64", Case(make, 90, SHARE, memory=100 * n)


def _rules() -> Iterator[tuple[str, Case]]:
    """Many tensors, the other rules, clipping, and the cost of a call."""
    torch = partial(Case, needs=("torch",))
    for count, n, bar in ((200, 1000, 12), (1000, 256, 20), (400, 10_000, 2.5)):
        make = partial(_against_torch, sp.AdamW, "AdamW", "fused", count, n, **ADAMW)
        yield f"tensors/{count}x{n}/torch-fused", torch(make, bar)
    n = ADAMW_SIZES["64Mi"]
    torch = partial(torch, memory=60 * n)
    for rule, kind, bar, options in (
        ("SGD", "fused", 1.05, {"momentum": 0.9}),
        ("Adagrad", "fused", 1.05, {}),
        ("RMSprop", "foreach", 3, {}),
        ("NAdam", "foreach", 3, {}),
    ):
        make = partial(_against_torch, getattr(sp, rule), rule, kind, 1, n, lr=1e-3, **options)
        yield f"rules/{rule}/64Mi/torch-{kind}", torch(make, bar)
    make = partial(_against_torch, sp.AdamW, "AdamW", "fused", 1, n, 1.0, **ADAMW)
    yield "clip/adamw/64Mi/torch-fused", torch(make, 1.25)
    yield "overhead/4-arrays", Case(partial(_alone, 4, 4), 1.0, MICROSECONDS)


def _losses() -> Iterator[tuple[str, Case]]:
    torch = partial(Case, needs=("torch",))
    for rows, classes, bar in ((32, 10, 8), (4096, 10, 3), (4096, 1000, 5), (2048, 32_000, 6.5)):
        make = partial(contenders.softmax_cross_entropy, rows, classes)
        yield f"softmax/{rows}x{classes}/torch", torch(make, 0.8 * bar if AVX2 else bar, memory=20 * rows * classes)
    for peer, bar in (("torch", 6), ("torch-out=", 4)):
        yield f"mse/65.5M/{peer}", torch(partial(contenders.mse, 2048, 32_000, peer), bar, memory=24 * 2048 * 32_000)


def _interleaved() -> Iterator[tuple[str, Case]]:
    """A step beside other work on two threads, PyTorch imported before ours, after it or not at all."""
    for other, torch in (("matmul", "without"), ("matmul", "before"), ("matmul", "after"), ("torch", "before"),
                         ("torch", "after")):  # fmt: skip
        for n in (100_000, 300_000, 1_000_000, 2_000_000, 4_000_000, 8_000_000):
            make = partial(interleaved.contest, other, torch == "after", n)
            needs, first = () if torch == "without" else ("torch",), "torch" if torch == "before" else ""
            yield f"beside/{other}/torch-{torch}/{n}", Case(make, 1.1, SLOWDOWN, needs, 28 * n, first)


CASES = {name: case for part in (_adamw, _streams, _rules, _losses, _interleaved) for name, case in part()}
