"""The contests that `peers.py` runs: who competes, what counts, and where the bar is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import interleaved
import steepest as sp
from contenders import (
    Arrays,
    Contest,
    Maker,
    contest,
    contest_of_states,
    mse,
    numpy_step,
    optax_step,
    softmax_cross_entropy,
    steepest_step,
    stream_step,
    torch_step,
)
from steepest import _core
from steepest.benchmarks import Contender

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


def _adamw_against(peer: str, n: int) -> Contest:
    peers: dict[str, Maker] = {
        "stream": partial(stream_step, sp.AdamW),
        "numpy": partial(numpy_step, False, ADAMW),
        "out=": partial(numpy_step, True, ADAMW),
        "optax-jit": partial(optax_step, ADAMW),
        "torch-fused": partial(torch_step, "AdamW", "fused", ADAMW),
        "torch-foreach": partial(torch_step, "AdamW", "foreach", ADAMW),
    }
    return contest({"ours": partial(steepest_step, partial(sp.AdamW, **ADAMW)), peer: peers[peer]}, Arrays(1, n))


def _against_stream(rule: str, n: int, dtype: str) -> Contest:
    make = RULES[rule]
    return contest({"ours": partial(steepest_step, make), "stream": partial(stream_step, make)}, Arrays(1, n, dtype))


def _against_torch(
    rule: str, kind: str, count: int, n: int, options: dict[str, Any], max_norm: float | None = None
) -> Contest:
    ours = partial(steepest_step, partial(getattr(sp, rule), **options, max_norm=max_norm))
    peer = partial(torch_step, rule, kind, options, max_norm=max_norm or 0)
    return contest({"ours": ours, f"torch {kind}": peer}, Arrays(count, n))


def _low_precision(state: str, peer: str, *, n: int) -> tuple[Contest, Callable[[str], object]]:
    peers: dict[str, Maker] = {
        "torch-fused": partial(torch_step, "AdamW", "fused", ADAMW),
        "float32": partial(steepest_step, partial(sp.AdamW, **ADAMW)),
    }
    ours = partial(steepest_step, partial(sp.AdamW, **ADAMW, state_dtype=state))
    tolerance = {"bfloat16": 0.02, "8bit": 1.0}[state]  # what is small in its group is lost at first
    return contest_of_states({"ours": ours, peer: peers[peer]}, n, tolerance)


def _alone(count: int, n: int) -> Contest:
    return {"ours": steepest_step(sp.AdamW, Arrays(count, n)), "nothing": Contender(lambda: None)}


RULES: dict[str, Callable[..., sp.Optimizer]] = {
    name: partial(sp.SGD, momentum=0.9) if name == "sgd_momentum" else getattr(sp, rule)
    for name, rule in {**{rule.lower(): rule for rule in sp.reference.RULES}, "sgd_momentum": "SGD"}.items()
}


def _adamw() -> Iterator[tuple[str, Case]]:
    """One array, every peer, every size."""
    fused = {"1000": 25, "10240": 6, "102400": 1.8, "1Mi": 1.2, "16Mi": 1.08, "64Mi": 1.05}
    for size, n in ADAMW_SIZES.items():
        numpy = {"numpy": 15, "out=": 8} if n >= Mi else {}
        for peer, needs in (("stream", ()), ("torch-fused", ("torch",)), ("torch-foreach", ("torch",)),
                            ("optax-jit", ("jax", "optax")), ("numpy", ()), ("out=", ())):  # fmt: skip
            if size in WITH_ALL_PEERS or peer in ("stream", "torch-fused"):
                bar = fused.get(size) if peer == "torch-fused" else numpy.get(peer)
                make, figure = partial(_adamw_against, peer, n), SHARE if peer == "stream" else RATIO
                yield f"adamw/{size}/{peer}", Case(make, bar, figure, needs, memory=48 * n)


def _streams() -> Iterator[tuple[str, Case]]:
    """The share of the stream that every rule reaches."""
    for rule in RULES:
        for size, dtype, bar in (("16Mi", "float32", 92), ("64Mi", "float32", 92), ("16Mi", "float64", 90)):
            n = ADAMW_SIZES[size]
            make = partial(_against_stream, rule, n, dtype)
            yield f"stream/{rule}/{size}-{dtype}", Case(make, bar, SHARE, memory=48 * n)


def _rules() -> Iterator[tuple[str, Case]]:
    """Many tensors, the other rules, clipping, and the cost of a call."""
    torch = partial(Case, needs=("torch",))
    for count, n, bar in ((200, 1000, 12), (1000, 256, 20), (400, 10_000, 2.5)):
        make = partial(_against_torch, "AdamW", "fused", count, n, ADAMW)
        yield f"tensors/{count}x{n}/torch-fused", torch(make, bar)
    n = ADAMW_SIZES["64Mi"]
    torch = partial(torch, memory=48 * n)
    for rule, kind, bar, options in (
        ("SGD", "fused", 1.05, {"momentum": 0.9}),
        ("Adagrad", "fused", 1.05, {}),
        ("RMSprop", "foreach", 3, {}),
        ("NAdam", "foreach", 3, {}),
    ):
        yield (
            f"rules/{rule}/64Mi/torch-{kind}",
            torch(partial(_against_torch, rule, kind, 1, n, {"lr": 1e-3, **options}), bar),
        )
    yield "clip/adamw/64Mi/torch-fused", torch(partial(_against_torch, "AdamW", "fused", 1, n, ADAMW, 1.0), 1.25)
    for state, bar in (("bfloat16", 1.2), ("8bit", 1.0)):
        make = partial(_low_precision, state, n=n)
        yield f"state/{state}/64Mi/torch-fused", torch(partial(make, "torch-fused"), bar)
        yield f"state/{state}/64Mi/float32", Case(partial(make, "float32"), memory=48 * n)
    yield "overhead/4-arrays", Case(partial(_alone, 4, 4), 1.0, MICROSECONDS)


def _losses() -> Iterator[tuple[str, Case]]:
    torch = partial(Case, needs=("torch",))
    for rows, classes, bar in ((32, 10, 8), (4096, 10, 3), (4096, 1000, 5), (2048, 32_000, 6.5)):
        make = partial(softmax_cross_entropy, rows, classes)
        yield f"softmax/{rows}x{classes}/torch", torch(make, 0.8 * bar if AVX2 else bar, memory=20 * rows * classes)
    for peer, bar in (("torch", 6), ("torch-out=", 4)):
        yield f"mse/65.5M/{peer}", torch(partial(mse, 2048, 32_000, peer), bar, memory=24 * 2048 * 32_000)


def _interleaved() -> Iterator[tuple[str, Case]]:
    """A step beside other work on two threads, PyTorch imported before ours, after it or not at all."""
    for other, torch in (("matmul", "without"), ("matmul", "before"), ("matmul", "after"), ("torch", "before"),
                         ("torch", "after")):  # fmt: skip
        for n in (100_000, 300_000, 1_000_000, 2_000_000, 4_000_000, 8_000_000):
            make = partial(interleaved.contest, other, torch == "after", n)
            needs, first = () if torch == "without" else ("torch",), "torch" if torch == "before" else ""
            yield f"beside/{other}/torch-{torch}/{n}", Case(make, 1.1, SLOWDOWN, needs, 28 * n, first)


CASES = {name: case for part in (_adamw, _streams, _rules, _losses, _interleaved) for name, case in part()}
