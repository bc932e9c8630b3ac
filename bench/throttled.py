"""State in fewer bytes where memory is slow: rules beside a process that streams through large arrays on another core.

    python bench/throttled.py [RULE ...]

Steps with state in 8 bits, in bfloat16 and in float32 take turns, on one thread and one core, on the same parameters
and gradients: in cache, in memory, and in memory beside the other process. Prints the median time of each per
parameter, and float32's over it with its 95 % interval. Last comes what a model says: a step takes the longer of its
time in cache and of its bytes, so state in fewer bytes is 1.4 times as fast as float32 below some bandwidth per core.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median

import numpy as np

import steepest as sp
from peers import interval
from steepest import benchmarks

STATES = {"float32": 4.0, "bfloat16": 2.0, "8bit": 1 + 4 / 256}  # bytes per number
NUMBERS = {"AdamW": 2, "NAdam": 2, "Adagrad": 1, "Momentum": 1, "Lion": 1}  # of state per parameter
SIGNED = {"AdamW": 1, "NAdam": 1, "Adagrad": 0, "Momentum": 1, "Lion": 1}  # of them, which take a bit more in 8 bits
BAR = 1.4
IN_CACHE = 1 << 14
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


def times(rule: str, n: int, seconds: float) -> dict[str, list[float]]:
    """Seconds per parameter."""
    calls = max(1, (1 << 20) // n)
    p, g = benchmarks.random(n, 0), np.abs(benchmarks.random(n, 1))

    def several(step: Callable[[object], object]) -> None:
        for _ in range(calls):
            step(g)

    steps = {name: partial(several, getattr(sp, rule)(p, lr=1e-5, state_dtype=name).step) for name in STATES}
    end = time.perf_counter() + seconds
    taken = benchmarks.rounds(steps, lambda taken: len(taken["8bit"]) >= 9 and time.perf_counter() > end)
    return {name: [t / calls / n for t in each] for name, each in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rules", nargs="*", default=list(NUMBERS), metavar="RULE", help="(default: all)")
    parser.add_argument("--parameters", type=int, default=64, metavar="MI", help="in Mi (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each table's column (default: %(default)s)")
    args = parser.parse_args()
    n = args.parameters << 20
    core, *others = sorted(os.sched_getaffinity(0))
    if not others:
        raise SystemExit("throttled.py: needs a second core")
    os.sched_setaffinity(0, {core})
    sp.set_num_threads(1)
    print(f"{'':<18}{'in cache':>20}{'in memory':>32}{'beside a stream':>32}{'GB/s per core':>16}")
    for rule in args.rules:
        columns = [times(rule, IN_CACHE, args.seconds / 4), times(rule, n, args.seconds)]
        with streaming(others[0]):
            columns.append(times(rule, n, args.seconds))
        traffic = {name: 12 + 2 * NUMBERS[rule] * each for name, each in STATES.items()}
        traffic["8bit"] += 2 * SIGNED[rule] / 8
        for name in STATES:
            line = f"{rule:<9} {name:<8}"
            for taken in columns:
                ratios = [full / own for full, own in zip(taken["float32"], taken[name], strict=True)]
                low, high = interval(ratios)
                line += f"{median(taken[name]) * 1e9:>8.3f} ns {median(ratios):>5.2f}x"
                line += "" if taken is columns[0] else f" ({low:.2f} to {high:.2f})"
            if traffic["float32"] >= BAR * traffic[name]:
                line += f"{traffic['float32'] / (BAR * median(columns[0][name]) * 1e9):>12.1f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
