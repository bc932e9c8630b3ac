"""A step beside BLAS: does a second thread still help when NumPy's matmul has just used both cores?

    python bench/interleaved.py

Each round multiplies a 256 x 784 by a 784 x 512 matrix on two BLAS threads, then takes an AdamW step.
Printed is the step's time on two threads relative to one thread's, for both engines, with PyTorch (if
it is installed) imported first and not: each in a process of its own. Exit code 1 if the pool is
above 1.1 anywhere.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from statistics import median

SIZES = (100_000, 300_000, 1_000_000, 2_000_000, 4_000_000, 8_000_000)
ALLOWED = 1.1


def measure(engine: str, torch_first: bool) -> list[float]:
    """Of every size, the median over rounds of the step's time on two threads over one thread's."""
    if torch_first:
        importlib.import_module("torch")
    import numpy as np
    from threadpoolctl import threadpool_limits

    import steepest as sp

    sp.set_threading(engine)
    rng = np.random.default_rng(0)
    a, b = rng.random((256, 784), np.float32), rng.random((784, 512), np.float32)
    c = np.empty((256, 512), np.float32)
    result = []
    with threadpool_limits(2, "blas"):
        for n in SIZES:
            p, g = rng.standard_normal(n, np.float32), rng.standard_normal(n, np.float32)
            optimizer = sp.AdamW(p)
            times: dict[int, list[float]] = {1: [], 2: []}
            deadline = time.perf_counter() + 2
            while time.perf_counter() < deadline or len(times[2]) < 50:
                for threads, taken in times.items():
                    sp.set_num_threads(threads)
                    for warm in (True, True, False):
                        np.matmul(a, b, out=c)
                        start = time.perf_counter()
                        optimizer.step(g)
                        if not warm:
                            taken.append(time.perf_counter() - start)
            result.append(median(times[2]) / median(times[1]))
    return result


def main() -> int:
    import steepest as sp

    worst = 0.0
    print("AdamW beside a 256x784x512 matmul: two threads' time over one thread's")
    print(f"{'':<28}" + "".join(f"{n:>11,}" for n in SIZES))
    for torch_first in (False, True) if importlib.util.find_spec("torch") else (False,):
        for engine in ("pool", "openmp") if sp._core.build_info()["openmp"] else ("pool",):
            command = [sys.executable, __file__, engine, str(int(torch_first))]
            ratios = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            name = engine + ", PyTorch imported first" * torch_first
            print(f"{name:<28}" + "".join(f"{ratio:>11.2f}" for ratio in ratios), flush=True)
            if engine == "pool":
                worst = max(worst, *ratios)
    print(f"the pool's largest is {worst:.2f}, allowed is {ALLOWED}")
    return int(worst > ALLOWED)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1], sys.argv[2] == "1")))
    else:
        sys.exit(main())
