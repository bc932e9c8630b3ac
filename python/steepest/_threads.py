"""How many threads to use: what the process may use, unless it is told."""

from __future__ import annotations

import math
import os
from pathlib import Path

from steepest import _core

_MOST = 256


def _cgroup_limit(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float:
    """The CPUs that the control groups of this process may use, infinite where there is no limit."""
    limit = math.inf
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return limit
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "cpu" if controllers else root  # version 1 or 2
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):
            limit = min(limit, _quota(folder))
            if folder == base:
                break
    return limit


def _quota(folder: Path) -> float:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        return int(quota) / int(period) if quota not in ("max", "-1") else math.inf
    except (OSError, ValueError):
        return math.inf


def available() -> int:
    """The CPUs that this process may use: affinity, control group, OMP_NUM_THREADS."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = min(cpus, math.ceil(min(_cgroup_limit(), cpus)), _MOST)
    outermost = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return max(1, min(limit, int(outermost)) if outermost.isdecimal() and int(outermost) > 0 else limit)


def set_defaults() -> None:
    """Applies STEEPEST_NUM_THREADS and STEEPEST_THREADS, or the defaults."""
    wanted = os.environ.get("STEEPEST_NUM_THREADS") or str(available())
    if not wanted.strip().isdecimal() or not 1 <= int(wanted) <= _MOST:
        raise ImportError(f"STEEPEST_NUM_THREADS: expected 1 to {_MOST} threads, got {wanted!r}")
    _core.set_num_threads(int(wanted))
    if engine := os.environ.get("STEEPEST_THREADS"):
        try:
            _core.set_threading(engine)
        except (ValueError, RuntimeError) as error:
            raise ImportError(f"STEEPEST_THREADS: {error}") from None
