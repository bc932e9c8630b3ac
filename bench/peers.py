"""The optimizers and losses against the machine's limits and against their peers.

    python bench/peers.py [--only PATTERN ...] [--quick] [--threads N] [--json FILE] [--list]

Each contest runs in a process of its own, where ours and one peer alternate after their answers were
compared. In a round each warms itself for 10 ms, or once, and is timed for 5 ms, or once; a round gives
one ratio. Printed are the medians over the rounds, with the interval that holds the ratio's median with 95 %
confidence, whatever its distribution. Rounds go on until that interval is less than 5 % wide, or the
time is up, which a `~` says. A contest with a bar meets it (yes), misses it (no), or has it inside the interval (open).

Peers that are not installed are skipped and named: `pip install ".[bench]"` has those of PyPI,
`pip install torch==2.13.0` PyTorch. `report.py` makes tables and plots of the JSON.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import steepest as sp
from cases import CASES, Case
from steepest import _core, benchmarks

HERE = Path(__file__).parent
WIDTH = 0.05  # of the interval, relative to the median
FEWEST = 7  # rounds
WARM, TURN = 10e-3, 5e-3  # seconds; libgomp's threads spin for some ms after a peer's turn
MOST_WHEN_QUICK = 1 << 30  # bytes
PACKAGES = ("numpy", "torch", "jax", "jaxlib", "optax", "scikit-learn", "keras", "tensorflow-cpu")


def asked(description: str | None, names: Sequence[str] = ()) -> Sequence[str]:
    """Those of `names` that the command line has; all, if it has none."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if names:
        parser.add_argument("names", nargs="*", help=f"of {', '.join(names)} (default: all)", metavar="NAME")
    given = getattr(parser.parse_args(), "names", ())
    if unknown := [name for name in given if name not in names]:
        parser.error(f"expected some of {', '.join(names)}, got {', '.join(unknown)}")
    return given or names


def interval(samples: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Two of the samples that have the distribution's median between them with at least that confidence.

    Of n independent samples the number below the median is binomial, so the k-th from either end do if
    2 P(Binomial(n, 1/2) < k) <= 1 - confidence. Fewer than six samples cannot: then it is (-inf, inf).
    """
    n, outside, k = len(samples), 0.0, 0
    while outside + 2 * math.comb(n, k) / 2**n <= 1 - confidence:
        outside += 2 * math.comb(n, k) / 2**n
        k += 1
    ordered = sorted(samples)
    return (ordered[k - 1], ordered[n - k]) if k else (-math.inf, math.inf)


def is_narrow(samples: Sequence[float]) -> bool:
    low, high = interval(samples)
    return high - low < WIDTH * median(samples)


def verdict(case: Case, low: float, high: float) -> str:
    """Whether the bar is met, as far as the interval tells."""
    if case.bar is None:
        return ""
    if case.figure.lower_is_better:
        return "yes" if high <= case.bar else "no" if low > case.bar else "open"
    return "yes" if low >= case.bar else "no" if high < case.bar else "open"


def obstacle(case: Case, quick: bool = False) -> str:
    """Why the contest cannot take place here, or nothing."""
    if missing := [name for name in case.needs if not importlib.util.find_spec(name)]:
        return f"{', '.join(missing)} not installed"
    if case.memory > benchmarks.free_memory():
        return f"needs {case.memory / 1e9:.0f} GB of memory"
    return "too large for --quick" if quick and case.memory > MOST_WHEN_QUICK else ""


def run(case: Case, seconds: float) -> dict[str, Any]:
    """Compares the contenders' answers, then times them, for at most so many seconds or `FEWEST` rounds."""
    made = case.make()
    contest, before = made if isinstance(made, tuple) else (made, None)
    benchmarks.check(contest)
    peer = list(contest)[1]
    start = time.perf_counter()

    def samples(taken: Mapping[str, list[float]]) -> list[float]:
        pairs = zip(taken["ours"], taken[peer], strict=True)
        return [case.figure.of(ours / case.calls, theirs / case.calls) for ours, theirs in pairs]

    def enough(taken: Mapping[str, list[float]]) -> bool:
        if len(taken["ours"]) < FEWEST:
            return False
        spent = time.perf_counter() - start
        return spent > seconds or (spent > seconds / 5 and is_narrow(samples(taken)))

    calls = {name: contender.call for name, contender in contest.items()}
    warm, turn = (WARM, TURN) if before is None else (0, TURN / 10)
    taken = benchmarks.rounds(calls, enough, warm=warm, turn=turn, before=before)
    figures = samples(taken)
    low, high = interval(figures)
    return {
        "seconds": {name: median(times) / case.calls for name, times in taken.items()},
        "figure": median(figures),
        "interval": [low, high],
        "narrow": is_narrow(figures),
        "rounds": len(figures),
        "unit": case.figure.unit,
        "bar": case.bar,
        "met": verdict(case, low, high),
    }


def child(name: str, seconds: float, threads: int) -> None:
    """What the process of a contest does."""
    if threads < sp.get_num_threads() and hasattr(os, "sched_setaffinity"):  # JAX has no other setting
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    sp.set_num_threads(threads)
    print(json.dumps(run(CASES[name], seconds)))


def in_own_process(name: str, seconds: float, threads: int) -> dict[str, Any]:
    first = CASES[name].import_first
    code = (f"import {first}; " if first else "") + f"import peers; peers.child({name!r}, {seconds}, {threads})"
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1] if done.stderr else f"exit code {done.returncode}"}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def machine() -> dict[str, Any]:
    """Where and with what this was measured."""
    info = _core.build_info()
    cpuinfo, meminfo = Path("/proc/cpuinfo"), Path("/proc/meminfo")
    models = [line.split(":")[1].strip() for line in _lines(cpuinfo) if line.startswith("model name")]
    memory = [int(line.split()[1]) / 2**20 for line in _lines(meminfo) if line.startswith("MemTotal")]
    caches = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"))
    found = {name: _version(name) for name in PACKAGES}
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "isa": info["isa"],
        "caches": [
            " ".join((cache / fact).read_text().strip() for fact in ("level", "type", "size")) for cache in caches
        ],
        "memory_gib": round(memory[0], 1) if memory else None,
        "system": platform.platform(),
        "compiler": info.get("compiler"),
        "python": platform.python_version(),
        "steepest": sp.__version__,
        "engine": sp.get_threading(),
        "packages": {name: version for name, version in found.items() if version},
    }


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def chosen(patterns: Sequence[str]) -> list[str]:
    """The names that match one of the patterns, or contain one of them."""
    names = [name for name in CASES if not patterns or any(fnmatch.fnmatch(name, f"*{p}*") for p in patterns)]
    if not names:
        raise SystemExit(f"--only: no contest matches {', '.join(patterns)}; --list names them all")
    return names


def row(name: str, result: Mapping[str, Any]) -> str:
    if why := result.get("skipped") or result.get("failed"):
        return f"{name:<36} {'skipped' if 'skipped' in result else 'FAILED'}: {why}"
    ours, theirs = (benchmarks.duration(t) for t in result["seconds"].values())
    low, high = result["interval"]
    width = f"{low:.3g} to {high:.3g}" + ("" if result["narrow"] else " ~")
    bar = "" if result["bar"] is None else f"{result['bar']:.3g}"
    figure = f"{result['figure']:.3g} {result['unit']}"
    return f"{name:<36}{ours:>10}{theirs:>10}{figure:>20}{width:>20}{bar:>8} {result['met']}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="PATTERN", help="contests whose names contain one of these"
    )
    parser.add_argument("--quick", action="store_true", help="half a second for each, and only what is small")
    parser.add_argument("--seconds", type=float, default=5.0, help="at most for each (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=sp.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="a file that the results are added to")
    parser.add_argument("--list", action="store_true", help="only print the contests' names")
    args = parser.parse_args()
    names = chosen(args.only)
    if args.list:
        print("\n".join(names))
        return 0
    saved = json.loads(args.json.read_text()) if args.json and args.json.exists() else {"results": {}}
    saved["machine"] = machine()
    head = "".join(
        f"{title:>{width}}" for title, width in (("ours", 10), ("peer", 10), ("figure", 20), ("95 %", 20), ("bar", 8))
    )
    print(f"{'':<36}{head} met")
    failed = 0
    for name in names:
        if why := obstacle(CASES[name], args.quick):
            result: dict[str, Any] = {"skipped": why}
        else:
            result = in_own_process(name, 0.5 if args.quick else args.seconds, args.threads)
        failed += "failed" in result
        print(row(name, result), flush=True)
        result |= {"threads": args.threads, "date": date.today().isoformat()}
        saved["results"][f"{name}@{args.threads}"] = result
        if args.json:
            args.json.write_text(json.dumps(saved, indent=1) + "\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
