"""Prints the tables of measured speeds in the README, in Markdown: `python bench/report.py`.

PyTorch's fused AdamW takes part if it is installed.
"""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Callable

import numpy as np

import steepest as sp
from steepest import benchmarks

ADAMW_SIZES = (1_000, 10_000, 100_000, 1_000_000, 16_000_000, 64_000_000)
OTHERS = 1_000_000


def torch_step(n: int) -> dict[str, Callable[[], object]]:
    if not importlib.util.find_spec("torch"):
        return {}
    import torch

    torch.set_num_threads(sp.get_num_threads())
    p, g = (torch.from_numpy(np.random.default_rng(i).standard_normal(n, np.float32)) for i in range(2))
    p.requires_grad_().grad = g
    return {"torch": torch.optim.AdamW([p], fused=True).step}


def measure(kernel: str, n: int) -> dict[str, float]:
    contenders = benchmarks.KERNELS[kernel].make(n)
    benchmarks.check(contenders)
    calls = {name: contender.call for name, contender in contenders.items()}
    calls["stream"] = benchmarks.stream(benchmarks.KERNELS[kernel], n)
    if kernel == "adamw":
        calls |= torch_step(n)
    return benchmarks.take_turns(calls, seconds=4)


def row(label: str, seconds: dict[str, float], columns: tuple[str, ...]) -> str:
    cells = [label, benchmarks.duration(seconds["ours"])]
    for name in columns:
        t = seconds.get(name)
        cells.append("" if t is None else f"{benchmarks.duration(t)} ({t / seconds['ours']:.1f}x)")
    return f"| {' | '.join(cells)} | {seconds['stream'] / seconds['ours']:.0%} |"


def main() -> None:
    isa = sp._core.build_info()["isa"]
    print(f"{platform.machine()}, {isa}, {sp.get_num_threads()} threads, NumPy {np.__version__}, float32\n")
    columns = ("numpy", "out=", "torch") if importlib.util.find_spec("torch") else ("numpy", "out=")
    titles = {"numpy": "NumPy as written", "out=": "NumPy, `out=`", "torch": "PyTorch fused"}
    print(f"| AdamW, parameters | steepest | {' | '.join(map(titles.__getitem__, columns))} | of the stream |")
    print("|---:|" + "---:|" * (len(columns) + 2))
    for n in ADAMW_SIZES:
        if benchmarks.fits(n):
            print(row(f"{n:,}", measure("adamw", n), columns), flush=True)
    print(f"\n| {OTHERS:,} elements | steepest | NumPy as written | NumPy, `out=` | of the stream |")
    print("|---|---:|---:|---:|---:|")
    for kernel in benchmarks.KERNELS:
        if kernel != "adamw":
            print(row(kernel, measure(kernel, OTHERS), ("numpy", "out=")), flush=True)


if __name__ == "__main__":
    main()
