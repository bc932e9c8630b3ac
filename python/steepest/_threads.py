"""How many threads to use: what the process may use, unless it is told."""

from __future__ import annotations

import math
import os
from pathlib import Path

from steepest import _core


def _cgroup_limit(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> float:
    """The CPUs that the control groups of this process may use, infinite where there is no limit."""
    limit = math.inf
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return limit
    for line in lines:
        _, controllers, path = line.split(":", 2)
        base = root if controllers == "" else root / "cpu"
        if controllers and "cpu" not in controllers.split(","):
            continue
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


def _from_environment(name: str) -> int | None:
    text = os.environ.get(name, "").split(",")[0].strip()
    return int(text) if text.isdecimal() and int(text) > 0 else None


def available() -> int:
    """The CPUs that this process may use: affinity, control group, OMP_NUM_THREADS."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_limit()
    if math.isfinite(quota):
        cpus = min(cpus, max(1, math.ceil(quota)))
    return min(cpus, _from_environment("OMP_NUM_THREADS") or cpus)


def set_defaults() -> None:
    """Applies STEEPEST_NUM_THREADS and STEEPEST_THREADS, or the defaults."""
    wanted = os.environ.get("STEEPEST_NUM_THREADS", "")
    if wanted and _from_environment("STEEPEST_NUM_THREADS") is None:
        raise ImportError(
            f"STEEPEST_NUM_THREADS: expected a number of threads >= 1, got {wanted!r}"
        )
    _core.set_num_threads(min(256, _from_environment("STEEPEST_NUM_THREADS") or available()))
    if engine := os.environ.get("STEEPEST_THREADS"):
        try:
            _core.set_threading(engine)
        except (ValueError, RuntimeError) as error:
            raise ImportError(f"STEEPEST_THREADS={engine}: {error}") from None
