"""Threads: the same bits whoever runs the blocks, and how many threads there are."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import steepest as sp
from steepest import _core, _threads

pytestmark = pytest.mark.kernels

Array = NDArray[Any]

ENGINES = ["pool", "openmp"] if _core.build_info()["openmp"] else ["pool"]
ISAS: list[str] = _core.build_info()["isas"]
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a program without the settings that this process may have been given."""
    names = ("STEEPEST_NUM_THREADS", "STEEPEST_THREADS", "STEEPEST_ISA", "OMP_NUM_THREADS")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    return subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, timeout=120
    )


def large_work() -> Callable[[], list[bytes]]:
    """A step of three tensors with its norm, and each loss, on arrays that several threads share."""
    rng = np.random.default_rng(0)
    sizes = (1_999_999, 7, 1_000_003)
    start = [rng.normal(size=n).astype(np.float32) for n in sizes]
    grads = [rng.normal(size=n).astype(np.float32) for n in sizes]
    logits, labels = rng.normal(size=(2_500, 1_000)).astype(np.float32), rng.integers(0, 1_000, 2_500)
    x, y = rng.normal(size=1_000_001), rng.random(1_000_001)
    gradient = {name: np.empty_like(a) for name, a in (("logits", logits), ("x", x))}

    def run() -> list[bytes]:
        params = [p.copy() for p in start]
        opt = sp.AdamW(params, max_norm=1.0)
        opt.step(grads)
        state = opt.state_dict()["state"].values()
        moments = (entry[name] for entry in state for name in ("exp_avg", "exp_avg_sq"))
        results = [*params, *moments, np.array([opt.last_norm])]
        for loss, g in (
            sp.losses.softmax_cross_entropy(logits, labels, out=gradient["logits"]),
            sp.losses.mse(x, y, out=gradient["x"]),
            sp.losses.binary_cross_entropy(x, y, sample_weight=y, out=gradient["x"]),
        ):
            results += [np.array([loss]), g.copy()]
        return [r.tobytes() for r in results]

    return run


def test_large_work_has_the_same_bits_with_any_threads_engine_and_isa() -> None:
    run = large_work()
    _core._set_isa(ISAS[0])
    sp.set_num_threads(1)
    expected = run()
    for isa, engine, threads in itertools.product(ISAS, ENGINES, (1, 2, 3, 4, 5, 6, 7)):
        _core._set_isa(isa)
        sp.set_threading(engine)
        sp.set_num_threads(threads)
        assert run() == expected, (isa, engine, threads)


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_large_work_wakes_other_threads_and_small_work_does_not() -> None:
    code = """
import os, numpy as np, steepest as sp
sp.set_num_threads(3)
def threads_after(n):
    p = np.ones(n, np.float32)
    sp.SGD(p).step(p.copy())
    return len(os.listdir("/proc/self/task"))
before = threads_after(1)
print(threads_after(1_000) - before, threads_after(3_000_000) - before)
"""
    assert python(code).stdout.split() == ["0", "2"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or CPUS < 2, reason="no affinity here, or one core")
def test_workers_leave_the_callers_core_but_may_return() -> None:
    code = """
import os, time, numpy as np, steepest as sp
def threads():
    return {int(name) for name in os.listdir("/proc/self/task")}
sp.set_num_threads(2)
p = np.zeros(3_000_000, np.float32)
opt, grad, everywhere, before = sp.SGD(p, lr=1.0), -np.ones_like(p), os.sched_getaffinity(0), threads()
opt.step(grad)
[worker] = threads() - before
os.sched_setaffinity(0, {min(everywhere)})  # the caller's
for allowed in ({min(everywhere)}, everywhere) * 20:
    os.sched_setaffinity(worker, allowed)
    opt.step(grad)
deadline = time.monotonic() + 10
while os.sched_getaffinity(worker) != everywhere:  # it may be on its way
    assert time.monotonic() < deadline
assert np.array_equal(p, np.full_like(p, 41))
"""
    run = python(code)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("threads", [2, 3, 7])
def test_every_thread_gets_blocks_when_they_must_share(engine: str, threads: int) -> None:
    sp.set_threading(engine)
    sp.set_num_threads(threads)
    _core._share_blocks_of(10)
    x = np.ones(1_000)
    sp.SGD(x, lr=1.0).step(np.ones_like(x))
    run = _core._blocks_run()
    assert len(run) == threads and min(run) > 0 and sum(run) == 100
    assert not x.any()


@pytest.mark.parametrize(("engine", "rounds"), [("pool", 4_000), ("openmp", 150), ("both", 150)])
def test_many_small_regions_lose_and_repeat_nothing(engine: str, rounds: int) -> None:
    if engine != "pool" and "openmp" not in ENGINES:
        pytest.skip("built without OpenMP")
    rng = np.random.default_rng(1)
    x = np.zeros(700)
    opt = sp.SGD(x, lr=1.0)
    grads = -np.arange(1.0, 701.0)
    for round_ in range(1, rounds + 1):
        sp.set_threading(ENGINES[round_ % 2] if engine == "both" else engine)
        sp.set_num_threads(int(rng.integers(1, 8 if engine == "pool" else 4)))
        _core._share_blocks_of(int(rng.integers(1, 9)))  # claims are what is contended
        opt.step(grads)
        assert x[0] == round_ and x[-1] == 700 * round_
    assert np.array_equal(x, -grads * rounds)


def in_threads(*functions: Callable[[], None]) -> None:
    """Runs them at once, and raises what they raise."""
    errors: list[BaseException] = []

    def guarded(f: Callable[[], None]) -> None:
        try:
            f()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(f,)) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("engine", ENGINES)
def test_python_threads_step_optimizers_of_their_own_at_once(engine: str) -> None:
    sp.set_threading(engine)
    sp.set_num_threads(2)
    gradient = np.random.default_rng(2).normal(size=200_000).astype(np.float32)

    def train(p: Array) -> None:
        opt = sp.Adam(p, max_norm=1.0)
        for _ in range(30):
            opt.step(gradient)

    alone, *others = (np.zeros_like(gradient) for _ in range(4))
    train(alone)
    in_threads(*(lambda p=p: train(p) for p in others))
    assert all(np.array_equal(alone, p) for p in others)


def test_python_threads_step_one_optimizer_in_turn() -> None:
    sp.set_num_threads(2)
    p = np.zeros(200_000)
    opt = sp.SGD(p, lr=1.0)
    gradient = np.full_like(p, -1.0)

    def train() -> None:
        for _ in range(50):
            opt.step(gradient)

    in_threads(train, train, train)
    assert opt.steps == 150 and (p == 150).all()


def test_a_schedule_that_steps_its_own_optimizer_is_refused_though_another_thread_waits() -> None:
    entered, waiting = threading.Event(), threading.Event()

    def schedule(step: int) -> float:
        if step == 0:
            entered.set()
            assert waiting.wait(10)
            with pytest.raises(RuntimeError, match="in the middle of a step"):
                opt.step(p.copy())
        return 0.5

    def other() -> None:
        assert entered.wait(10)
        threading.Timer(0.05, waiting.set).start()
        opt.step(np.ones_like(p))

    p = np.ones(3)
    opt = sp.SGD(p, lr=schedule)
    in_threads(lambda: opt.step(np.ones_like(p)), other)
    assert opt.steps == 2 and not p.any()


@pytest.mark.parametrize("n", [0, -1, 257, 2**40, 10**30])
def test_a_number_of_threads_out_of_range_is_refused(n: int) -> None:
    before = sp.get_num_threads()
    with pytest.raises(ValueError, match=f"n: expected 1 to 256 threads, got {n}"):
        sp.set_num_threads(n)
    assert sp.get_num_threads() == before


def test_settings_of_a_wrong_type_or_name_are_refused() -> None:
    for n in (2.5, "2", None):
        with pytest.raises(TypeError, match=r"^n: expected an integer, got "):
            sp.set_num_threads(n)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="engine: expected a string, got int"):
        sp.set_threading(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='engine: expected "pool" or "openmp", got "tbb"'):
        sp.set_threading("tbb")
    if "openmp" not in ENGINES:
        with pytest.raises(RuntimeError, match="built by a compiler without OpenMP"):
            sp.set_threading("openmp")


def test_settings_are_what_was_set() -> None:
    for n in (1, 256, 3):
        sp.set_num_threads(n)
        assert sp.get_num_threads() == n
    for engine in ENGINES:
        sp.set_threading(engine)
        assert sp.get_threading() == engine


SETTINGS = "import steepest as sp; print(sp.get_num_threads(), sp.get_threading(), sp._core.build_info()['isa'])"


def test_the_environment_chooses_threads_engine_and_isa() -> None:
    for engine, isa in itertools.zip_longest(ENGINES, ISAS, fillvalue=""):
        run = python(SETTINGS, STEEPEST_NUM_THREADS="5", STEEPEST_THREADS=engine, STEEPEST_ISA=isa)
        assert run.stdout.split() == ["5", engine or "pool", isa or ISAS[-1]], run.stderr


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("STEEPEST_NUM_THREADS", "0", "STEEPEST_NUM_THREADS: expected 1 to 256 threads, got '0'"),
        ("STEEPEST_NUM_THREADS", "two", "STEEPEST_NUM_THREADS: expected 1 to 256 threads, got 'two'"),
        ("STEEPEST_NUM_THREADS", "1000", "STEEPEST_NUM_THREADS: expected 1 to 256 threads, got '1000'"),
        ("STEEPEST_THREADS", "tbb", 'STEEPEST_THREADS: engine: expected "pool" or "openmp", got "tbb"'),
        ("STEEPEST_ISA", "mmx", 'STEEPEST_ISA: ISA "mmx" is not known; expected one of '),
        ("STEEPEST_ISA", "avx512", "STEEPEST_ISA: ISA avx512 is not supported by this CPU or its operating system"),
    ],
)
def test_a_wrong_environment_is_reported_by_the_import(name: str, value: str, message: str) -> None:
    if value == "avx512" and (value in ISAS or "sse2" not in ISAS):
        pytest.skip("nothing that this machine lacks")
    run = python("import steepest", **{name: value})
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith(f"ImportError: {message}")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_the_default_is_what_the_affinity_allows() -> None:
    for cpus in ({min(os.sched_getaffinity(0))}, os.sched_getaffinity(0)):
        run = python(f"import os; os.sched_setaffinity(0, {cpus}); {SETTINGS}")
        assert int(run.stdout.split()[0]) == min(len(cpus), math.ceil(min(_threads._cgroup_limit(), 256)))


@pytest.mark.parametrize(("value", "expected"), [("1", 1), (" 1,4", 1), ("9999", CPUS), ("0", CPUS), ("many", CPUS)])
def test_omp_num_threads_lowers_the_default(monkeypatch: pytest.MonkeyPatch, value: str, expected: int) -> None:
    monkeypatch.setattr(_threads, "_cgroup_limit", lambda: math.inf)
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert _threads.available() == expected


@pytest.mark.parametrize(("limit", "expected"), [(0.2, 1), (1.0, 1), (1.5, min(2, CPUS)), (math.inf, CPUS)])
def test_a_control_group_lowers_the_default(monkeypatch: pytest.MonkeyPatch, limit: float, expected: int) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(_threads, "_cgroup_limit", lambda: limit)
    assert _threads.available() == expected


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, 2),
        ("0::/a/b\n", {"a/b/cpu.max": "50000 100000\n", "a/cpu.max": "200000 100000\n"}, 0.5),
        ("0::/not/mounted/here\n", {"cpu.max": "300000 100000\n"}, 3),
        ("0::/../sibling\n", {"cpu.max": "300000 100000\n"}, 3),
        (
            "5:memory:/m\n4:cpu,cpuacct:/a\n0::/\n",
            {"cpu/a/cpu.cfs_quota_us": "250000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
            2.5,
        ),
        ("4:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ("5:cpuset:/\n", {"cpu/cpu.cfs_quota_us": "1\n", "cpu/cpu.cfs_period_us": "1\n"}, math.inf),
        ("0::/\n", {"cpu.max": "nonsense"}, math.inf),
        ("", {}, math.inf),
        (None, {}, math.inf),
    ],
)
def test_control_groups_are_read(
    tmp_path: Path, membership: str | None, files: dict[str, str], expected: float
) -> None:
    root = tmp_path / "cgroup"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    if membership is not None:
        (tmp_path / "membership").write_text(membership)
    assert _threads._cgroup_limit(root, tmp_path / "membership") == expected
