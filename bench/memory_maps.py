"""AdamW over parameters, gradients and state in files that together are larger than the memory it may have.

    python bench/memory_maps.py [--parameters 300] [--limit 1024]        # millions, MiB; Linux, as root

Makes a control group (version 1 or 2) with that limit, which counts the pages of mapped files as well, and enters it.
Prints the time of each step, the bandwidth of the files (28 bytes per parameter, as in memory), what the disk
does in a plain sequential read and write of as many bytes, and the most memory that the group used.
"""

from __future__ import annotations

import argparse
import mmap
import os
import tempfile
import time
from pathlib import Path

import numpy as np

import steepest as sp

MB = 1 << 20
GROUPS = Path("/sys/fs/cgroup")


def enter_group(limit: int) -> tuple[Path, str]:
    """The group, and the name of the file with its current use."""
    first = (GROUPS / "memory").exists()
    group = (GROUPS / "memory" if first else GROUPS) / f"steepest-{os.getpid()}"
    group.mkdir()
    (group / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(limit))
    (group / "cgroup.procs").write_text(str(os.getpid()))
    return group, "memory.usage_in_bytes" if first else "memory.current"


def plain(folder: Path, size: int) -> tuple[float, float]:
    """Bytes per second of reading and of writing a file in order."""
    block, path = bytes(8 * MB), folder / "plain"
    start = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(size // len(block)):
            file.write(block)
        os.fsync(file.fileno())
    writing = time.perf_counter() - start
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        while file.read(len(block)):
            pass
    reading = time.perf_counter() - start
    path.unlink()
    return size / reading, size / writing


def mapped(path: Path, n: int) -> np.memmap:
    x = np.lib.format.open_memmap(path, "w+", np.float32, (n,))
    x._mmap.madvise(mmap.MADV_SEQUENTIAL)  # reads far ahead
    return x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=int, default=300, help="millions (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=1024, help="MiB (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    args = parser.parse_args()
    n = args.parameters * 1_000_000
    group, use = enter_group(args.limit * MB)
    try:
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            folder = Path(name)
            read, write = plain(folder, 2 * args.limit * MB)
            print(f"files of {16 * n / MB:,.0f} MiB, limit {args.limit:,} MiB")
            print(f"plain file: reads {read / 1e6:,.0f} MB/s, writes {write / 1e6:,.0f} MB/s")
            print(f"a step at that speed: {16 * n / read + 12 * n / write:.1f} s")
            p, g, m, v = (mapped(folder / x, n) for x in "pgmv")
            for i in range(0, n, 1_000_000):
                p[i : i + 1_000_000], g[i : i + 1_000_000] = 1, 0.5
            optimizer = sp.AdamW(p)
            state = optimizer.state_dict(copy=False)
            state["state"][0] |= {"exp_avg": m, "exp_avg_sq": v}
            optimizer.load_state_dict(state, copy=False)
            for step in range(args.steps):
                start = time.perf_counter()
                optimizer.step(g)
                took = time.perf_counter() - start
                used = int((group / use).read_text()) / MB
                print(
                    f"step {step + 1}: {took:.1f} s, {28 * n / took / 1e6:,.0f} MB/s, group uses {used:,.0f} MiB",
                    flush=True,
                )
            exact = np.ones(1, np.float32)
            one = sp.AdamW(exact)
            for _ in range(args.steps):
                one.step(np.full(1, 0.5, np.float32))
            assert all((p[i : i + 1_000_000] == exact).all() for i in range(0, n, 1_000_000))
            print("every parameter is as it would be in memory")
    finally:
        (group.parent / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


if __name__ == "__main__":
    main()
