"""What bounds the kernels: memory for large arrays, arithmetic for those in cache.

    python bench/roofline.py

Prints the bandwidth of a loop that only adds (over as many arrays as the rules have), on one thread
and on all, and the kernels' share of it; then, on one thread and in cache, every kernel's time per
element with each instruction set of this machine. Minima of many turns, float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import steepest as sp
from steepest import _core, benchmarks

MEMORY_SIZES = (100_000, 1_000_000, 4_000_000, 16_000_000, 64_000_000)
IN_CACHE = 4_000  # AdamW: 64 kB, in L2


def fastest(calls: dict[str, Callable[[], object]], seconds: float = 0.4) -> dict[str, float]:
    """The shortest time of each call; they take turns, each after a call of its own."""
    best = dict.fromkeys(calls, float("inf"))
    deadline = time.perf_counter() + seconds * len(calls)
    while time.perf_counter() < deadline:
        for name, call in calls.items():
            call()
            for _ in range(10):
                start = time.perf_counter()
                call()
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def memory(threads: int) -> None:
    print(f"\n{threads} thread(s): GB/s of the stream, and the kernel's share of it")
    sp.set_num_threads(threads)
    names = ("adamw", "rmsprop", "sgd", "mse", "softmax_1000", "global_norm")
    print(f"{'elements':>12}" + "".join(f"{name:>20}" for name in names))
    for n in MEMORY_SIZES:
        if not benchmarks.fits(n):
            continue
        cells = []
        for name in names:
            kernel = benchmarks.KERNELS[name]
            calls = {"ours": kernel.make(n)["ours"].call, "stream": benchmarks.stream(kernel, n)}
            best = fastest(calls)
            cells.append(f"{kernel.bytes * n / best['stream'] / 1e9:.1f}, {best['stream'] / best['ours']:.0%}")
        print(f"{n:>12,}" + "".join(f"{cell:>20}" for cell in cells), flush=True)


def arithmetic() -> None:
    chosen, isas = _core.build_info()["isa"], _core.build_info()["isas"]
    print(f"\n1 thread, {IN_CACHE:,} elements in cache: ns per element, without the cost of a call")
    sp.set_num_threads(1)
    print(f"{'kernel':<22}" + "".join(f"{isa:>10}" for isa in isas))
    for name, kernel in benchmarks.KERNELS.items():
        small, large = (kernel.make(n)["ours"].call for n in (IN_CACHE // 4, IN_CACHE))
        cells = []
        for isa in isas:
            _core._set_isa(isa)
            best = fastest({"small": small, "large": large}, 0.1)
            cells.append(f"{(best['large'] - best['small']) / (IN_CACHE - IN_CACHE // 4) * 1e9:.2f}")
        print(f"{name:<22}" + "".join(f"{cell:>10}" for cell in cells), flush=True)
    _core._set_isa(chosen)


if __name__ == "__main__":
    all_threads = sp.get_num_threads()
    arithmetic()
    for threads in sorted({1, all_threads}):
        memory(threads)
