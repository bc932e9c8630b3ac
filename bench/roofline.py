"""What this machine can do: the limits that the kernels are measured against.

    python bench/roofline.py

Streams of the kernels' shapes (loops that only add, over as many arrays) in each cache and in memory; the peak of
multiplications and additions, fused and apart (built with the C compiler that is found); BLAS on the products
of the 784-128-10 network; and, in cache, every kernel's time per element with each instruction set. On one thread,
and on all where that makes sense. Minima of many turns, float32.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

import steepest as sp
from peers import asked
from steepest import _core, benchmarks

SHAPES = ("adamw", "rmsprop", "sgd", "mse", "softmax_1000", "global_norm")  # a kernel of each
LEVELS = {"L1": 16 << 10, "L2": 256 << 10, "L3": 8 << 20, "memory": 1 << 30}  # bytes of all arrays together
IN_CACHE = 4_000  # elements; AdamW: 64 kB, in L2
LANES = {"sse2": 4, "avx2": 8, "avx512": 16, "neon": 4}
# batch 32: forward, forward, weights' gradient, input's gradient, weights' gradient
PRODUCTS = (((32, 784), (784, 128)), ((32, 128), (128, 10)), ((128, 32), (32, 10)), ((32, 10), (10, 128)),
            ((784, 32), (32, 128)))  # fmt: skip


def fastest(calls: dict[str, Callable[[], object]], seconds: float = 0.1) -> dict[str, float]:
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


def per_element(make: Callable[[int], Callable[[], object]], n: int) -> float:
    """Nanoseconds, without the cost of a call."""
    best = fastest({"small": make(max(1, n // 4)), "large": make(n)})
    return (best["large"] - best["small"]) / (n - n // 4) * 1e9


def row(name: str, cells: list[str]) -> None:
    print(f"{name:<26}" + "".join(f"{cell:>14}" for cell in cells), flush=True)


def streams(threads: int) -> None:
    print(f"\nstreams, {threads} thread(s), GB/s")
    row("updated, written, read", list(LEVELS))
    sp.set_num_threads(threads)
    for name in SHAPES:
        kernel = benchmarks.KERNELS[name]
        arrays = kernel.updated + kernel.written + kernel.read

        def make(n: int, kernel: benchmarks.Kernel = kernel) -> Callable[[], object]:
            lists = [[benchmarks.random(n, 1) for _ in range(k)] for k in (kernel.updated, kernel.written, kernel.read)]
            return partial(_core._stream, *lists)

        speeds = [kernel.bytes / per_element(make, size // (4 * arrays)) for size in LEVELS.values()]
        row(f"{kernel.updated}, {kernel.written}, {kernel.read} ({name})", [f"{speed:.1f}" for speed in speeds])


def arithmetic(threads: int) -> None:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        print("\narithmetic peak: no C compiler")
        return
    n, lanes = 1_000_000, LANES[_core.build_info()["isa"]]
    cells = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(threads) as pool:
        for name, flag in (("apart", "off"), ("fused", "fast")):
            library = Path(folder, f"{name}.so")
            subprocess.run([compiler, "-O3", "-march=native", f"-ffp-contract={flag}", f"-DLANES={lanes}", "-shared",
                            "-fPIC", "-o", library, Path(__file__).with_name("limits.c")], check=True)  # fmt: skip
            run = ctypes.CDLL(str(library)).multiply_add
            run.argtypes, run.restype = (ctypes.c_ssize_t, ctypes.c_float, ctypes.c_float), ctypes.c_float
            call = partial(run, n, 0.5, 1.0)
            best = fastest({"all": lambda call=call: list(pool.map(lambda _: call(), range(threads)))}, 0.3)["all"]
            cells[name] = f"{2 * 12 * lanes * n * threads / best / 1e9:.0f}"
    print(f"\narithmetic peak, {threads} thread(s), GFLOP/s: apart {cells['apart']}, fused {cells['fused']}")


def blas(threads: int) -> None:
    print(f"\nBLAS, {threads} thread(s): the products of 784-128-10, batch 32")
    row("shapes", ["us", "GFLOP/s"])
    total = 0.0
    with threadpool_limits(threads, "blas"):
        for left, right in PRODUCTS:
            a, b = (benchmarks.random(s[0] * s[1], 0).reshape(s) for s in (left, right))
            c = np.empty((left[0], right[1]), np.float32)
            seconds = fastest({"product": partial(np.matmul, a, b, out=c)})["product"]
            total += seconds
            flops = 2 * left[0] * left[1] * right[1]
            row(f"{left} {right}", [f"{1e6 * seconds:.1f}", f"{flops / seconds / 1e9:.0f}"])
    row("all five", [f"{1e6 * total:.1f}", f"{sum(2 * a[0] * a[1] * b[1] for a, b in PRODUCTS) / total / 1e9:.0f}"])


def kernels() -> None:
    chosen, isas = _core.build_info()["isa"], _core.build_info()["isas"]
    print(f"\n1 thread, {IN_CACHE:,} elements in cache: ns per element")
    sp.set_num_threads(1)
    row("kernel", isas)
    for name, kernel in benchmarks.KERNELS.items():
        cells = []
        for isa in isas:
            _core._set_isa(isa)
            cells.append(f"{per_element(lambda n, kernel=kernel: kernel.make(n)['ours'].call, IN_CACHE):.2f}")
        row(name, cells)
    _core._set_isa(chosen)


if __name__ == "__main__":
    asked(__doc__)
    all_threads = sp.get_num_threads()
    for threads in sorted({1, all_threads}):
        streams(threads)
        arithmetic(threads)
        blas(threads)
    kernels()
    sp.set_num_threads(all_threads)
