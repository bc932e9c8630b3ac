"""State in fewer bytes where memory is slow: AdamW beside a process that streams through large arrays on another core.

    python bench/throttled.py

Steps with state in 8 bits, in bfloat16 and in float32 take turns, on one thread and one core, on the same parameters
and gradients; first alone, then beside the other process. Prints the median time of each per parameter, and float32's
over it with its 95 % interval.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median

import numpy as np

import steepest as sp
from peers import interval
from steepest import benchmarks

STATES = "float32", "bfloat16", "8bit"
STREAM = """
import os, sys, numpy as np, steepest as sp
os.sched_setaffinity(0, {int(sys.argv[1])})
sp.set_num_threads(1)
x, y = (np.ones(1 << 26, np.float32) for _ in range(2))
print("ready", flush=True)
while True: sp._core._stream([x], [], [y])
"""


@contextmanager
def streaming(core: int) -> Iterator[None]:
    """A process that reads and writes memory on this core, as fast as it can."""
    process = subprocess.Popen([sys.executable, "-c", STREAM, str(core)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        yield
    finally:
        process.kill()
        process.wait()


def times(n: int, seconds: float) -> dict[str, list[float]]:
    p, g = benchmarks.random(n, 0), np.abs(benchmarks.random(n, 1))
    steps = {name: partial(sp.AdamW(p, lr=1e-4, state_dtype=name).step, g) for name in STATES}
    end = time.perf_counter() + seconds
    return benchmarks.rounds(steps, lambda taken: len(taken["8bit"]) >= 9 and time.perf_counter() > end)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=int, default=64, metavar="MI", help="in Mi (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each half (default: %(default)s)")
    args = parser.parse_args()
    n = args.parameters << 20
    core, *others = sorted(os.sched_getaffinity(0))
    if not others:
        raise SystemExit("throttled.py: needs a second core")
    os.sched_setaffinity(0, {core})
    sp.set_num_threads(1)
    print(f"{'':<10}{'alone':>40}{'beside a stream':>40}")
    alone = times(n, args.seconds)
    with streaming(others[0]):
        beside = times(n, args.seconds)
    for name in STATES:
        line = f"{name:<10}"
        for taken in (alone, beside):
            ratios = [full / own for full, own in zip(taken["float32"], taken[name], strict=True)]
            low, high = interval(ratios)
            line += f"{median(taken[name]) / n * 1e9:>14.3f} ns {median(ratios):>6.2f}x ({low:.2f} to {high:.2f})"
        print(line)


if __name__ == "__main__":
    main()
