"""What breaks libraries like this one: fork, other runtimes in the process, floating point modes, exit."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import steepest as sp
from steepest import _core, reference

pytestmark = pytest.mark.kernels

Array = NDArray[Any]

ENGINES = ["pool", "openmp"] if _core.build_info()["openmp"] else ["pool"]
THREADS_OF_CHILD = {"pool": 2, "openmp": 1}  # a pool starts afresh; libgomp cannot, so its child does without threads
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

# What the programs below share. A child that hangs is ended by its alarm, and so fails.
PRELUDE = """
import hashlib, os, signal, sys, threading, time, warnings
import numpy as np
import steepest as sp
from steepest import _core
warnings.simplefilter("ignore", DeprecationWarning)  # that to fork is dangerous is what is tested

def region(engine="pool", threads=2):
    "The digest of what a step of several threads gives."
    sp.set_threading(engine)
    sp.set_num_threads(threads)
    _core._share_blocks_of(500)
    p = np.linspace(-1, 1, 4_000)
    sp.Adam(p, max_norm=1.0).step(np.sin(p))
    return hashlib.sha256(p.tobytes()).hexdigest()

def busy_threads():
    return np.count_nonzero(_core._blocks_run())

def in_child(f):
    "Whether f() is true in a child."
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if f() else 1)
    return os.waitpid(child, 0)[1] == 0
"""


def program(tmp_path: Path, code: str, **environment: str) -> list[str]:
    """What a program prints, line by line; it must end well."""
    file = tmp_path / "program.py"
    file.write_text(PRELUDE + code)
    run = subprocess.run(
        [sys.executable, "-X", "faulthandler", str(file)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


@needs_fork
@pytest.mark.parametrize("engine", ENGINES)
def test_parent_and_child_work_after_fork(tmp_path: Path, engine: str) -> None:
    code = f"""
expected = region({engine!r})
for _ in range(200):
    assert in_child(lambda: region({engine!r}) == expected and busy_threads() == {THREADS_OF_CHILD[engine]})
    assert region({engine!r}) == expected and busy_threads() == 2
"""
    program(tmp_path, code)


@needs_fork
@pytest.mark.parametrize(("engine", "times"), [(engine, 200 if engine == "pool" else 50) for engine in ENGINES])
def test_fork_while_another_thread_is_inside_a_kernel(tmp_path: Path, engine: str, times: int) -> None:
    code = f"""
expected = region({engine!r})
big = np.ones(1_000_000, np.float32)
opt = sp.SGD(big, lr=0.0)
done = threading.Event()
def work():
    while not done.is_set():
        opt.step(big_gradient)
big_gradient = np.ones_like(big)
thread = threading.Thread(target=work, daemon=True)
thread.start()
for i in range({times}):
    if i % 10 == 0:
        time.sleep(0.002)
    assert in_child(lambda: region({engine!r}) == expected and busy_threads() == {THREADS_OF_CHILD[engine]})
    assert region({engine!r}) == expected
done.set()
thread.join()
"""
    program(tmp_path, code)


@needs_fork
def test_a_child_forks_a_child(tmp_path: Path) -> None:
    program(
        tmp_path,
        """
expected = region()
def grandchild():
    return region() == expected
assert in_child(lambda: region() == expected and in_child(grandchild) and region() == expected)
""",
    )


@needs_fork
@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_child_steps_an_optimizer_whose_turn_another_thread_had(tmp_path: Path, size: int) -> None:
    # The schedule forks in the middle of the other thread's step, and while a third one waits.
    code = f"""
parent = os.getpid()
entered, go_on = threading.Event(), threading.Event()
def schedule(step):
    if os.getpid() == parent and step == 0:
        entered.set()
        assert go_on.wait(30)
    return 0.5
p = np.ones({size})
opt = sp.SGD(p, lr=schedule)
threads = [threading.Thread(target=opt.step, args=(np.ones_like(p), 1.0), daemon=True) for _ in range(2)]
for thread in threads:
    thread.start()
assert entered.wait(30)
time.sleep(0.01)
def child():
    opt.step(np.ones_like(p))
    return opt.steps == 1 and (p == 0.5).all()
assert in_child(child)
go_on.set()
for thread in threads:
    thread.join()
assert opt.steps == 2 and not p.any()
"""
    program(tmp_path, code)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(tmp_path: Path, method: str) -> None:
    code = f"""
import multiprocessing

if __name__ == "__main__":
    if {method!r} not in multiprocessing.get_all_start_methods():
        sys.exit()
    expected = region()
    with multiprocessing.get_context({method!r}).Pool(2) as pool:
        assert pool.starmap_async(region, [()] * 4).get(60) == [expected] * 4
    assert region() == expected
"""
    program(tmp_path, code)


@pytest.mark.skipif(importlib.util.find_spec("joblib") is None, reason="no joblib")
def test_joblib_workers_give_the_same_bits_and_share_the_processors(tmp_path: Path) -> None:
    code = """
import joblib

def worker():
    threads = sp.get_num_threads()
    digest = region()
    sp.set_num_threads(threads)
    return threads, digest

if __name__ == "__main__":
    expected = region()
    for threads, result in joblib.Parallel(n_jobs=2)(joblib.delayed(worker)() for _ in range(4)):
        assert result == expected
        assert threads <= max(1, joblib.cpu_count() // 2)
"""
    program(tmp_path, code)


NEIGHBOURS = {
    "sklearn": "from sklearn.cluster import KMeans; KMeans(2, n_init=1).fit(np.random.default_rng(0).random((999, 2)))",
    "torch": "import torch; torch.set_num_threads(2); torch.ones(300_000).mul(2).add(1).sum()",
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("sklearn", marks=pytest.mark.skipif(not importlib.util.find_spec("sklearn"), reason="none")),
        pytest.param("torch", marks=pytest.mark.torch),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_another_openmp_runtime_in_the_process_changes_nothing(tmp_path: Path, name: str, first: bool) -> None:
    if name == "torch":
        pytest.importorskip("torch")
    regions = f"print(*(region(engine, 3) for engine in {ENGINES}))\n"
    neighbour = f"import numpy as np; {NEIGHBOURS[name]}\n"
    file = tmp_path / "program.py"
    file.write_text((neighbour if first else "") + PRELUDE + regions + neighbour + regions + neighbour)
    run = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert set(run.stdout.split()) == set(program(tmp_path, "print(region())"))


def test_a_daemon_thread_in_a_step_does_not_crash_the_exit(tmp_path: Path) -> None:
    code = """
p = np.ones(1_000_000, np.float32)
opt, g = sp.AdamW(p), np.ones_like(p)
def work():
    while True:
        opt.step(g)
threading.Thread(target=work, daemon=True).start()
threading.Thread(target=work, daemon=True).start()
while opt.steps < 3:
    time.sleep(0.001)
"""
    for _ in range(3):
        program(tmp_path, code, STEEPEST_NUM_THREADS="3")


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has a GIL")
def test_the_import_leaves_the_gil_off(tmp_path: Path) -> None:
    assert program(tmp_path, "print(sys._is_gil_enabled())", PYTHON_GIL="") == ["False"]


# A library that reads and writes the mode of the calling thread, and of the team that libgomp keeps for it. The odd
# mode rounds toward zero and flushes subnormals.
MODE_LIBRARY = """
#if defined(__x86_64__)
unsigned long get_mode(void) { return __builtin_ia32_stmxcsr(); }
void set_mode(unsigned long mode) { __builtin_ia32_ldmxcsr((unsigned)mode); }
unsigned long odd_mode(void) { return 0x1f80 | 0x8040 | 0x6000; }
#elif defined(__aarch64__)
unsigned long get_mode(void) { unsigned long m; __asm__ volatile("mrs %0, fpcr" : "=r"(m)); return m; }
void set_mode(unsigned long mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
unsigned long odd_mode(void) { return 3ul << 22 | 1ul << 24; }
#endif
int set_team_mode(unsigned long mode, int threads) {
  int changed = 0;
#pragma omp parallel num_threads(threads) reduction(+ : changed)
  {
    changed += get_mode() != mode;
    set_mode(mode);
  }
  return changed;
}
"""


class Mode:
    """The floating point mode of this thread."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        for name in ("get_mode", "odd_mode"):
            getattr(self._library, name).restype = ctypes.c_ulong
        self._library.set_mode.argtypes = [ctypes.c_ulong]
        self._library.set_team_mode.argtypes = [ctypes.c_ulong, ctypes.c_int]
        self.odd: int = self._library.odd_mode()
        self.default = self.get()

    def get(self) -> int:
        mode: int = self._library.get_mode()
        return mode

    def set(self, mode: int) -> None:
        self._library.set_mode(mode)

    def set_team(self, mode: int, threads: int) -> int:
        """Returns in how many threads that changed it."""
        changed: int = self._library.set_team_mode(mode, threads)
        return changed


@pytest.fixture
def mode(tmp_path: Path) -> Iterator[Mode]:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform == "win32" or platform.machine() not in ("x86_64", "aarch64", "arm64"):
        pytest.skip("no compiler for the library that sets the mode")
    (tmp_path / "mode.c").write_text(MODE_LIBRARY)
    openmp = ["-fopenmp"] if "openmp" in ENGINES else []
    command = [compiler, "-shared", "-fPIC", *openmp, "-o", "mode.so", "mode.c"]
    if subprocess.run(command, cwd=tmp_path, capture_output=True).returncode != 0:
        pytest.skip("the compiler does not build the library that sets the mode")
    mode = Mode(tmp_path / "mode.so")
    yield mode
    mode.set(mode.default)


def tiny_values(dtype: type[np.floating[Any]], n: int = 4_000) -> Array:
    """Values around the smallest normal number, most of them subnormal."""
    rng = np.random.default_rng(3)
    return (rng.normal(size=n) * float(np.finfo(dtype).smallest_normal)).astype(dtype)


def results_for(tiny: Array, other: Array) -> list[bytes]:
    """What kernels make of values that flushing or another rounding would change."""
    p, q = tiny.copy(), tiny.copy()
    sp.SGD(p, lr=1.0).step(tiny[::-1].copy())
    sp.Adam(q, lr=1e-3, max_norm=1.0).step(tiny)
    labels = np.arange(400) % 10
    return [
        p.tobytes(),
        q.tobytes(),
        _core._exp(other).tobytes(),
        np.float64(sp.global_norm([tiny, other])).tobytes(),
        *(np.asarray(x).tobytes() for x in sp.losses.mse(tiny, other)),
        *(np.asarray(x).tobytes() for x in sp.losses.binary_cross_entropy(tiny, np.sign(other) / 2 + 0.5)),
        *(np.asarray(x).tobytes() for x in sp.losses.softmax_cross_entropy(other.reshape(-1, 10), labels)),
    ]


def test_subnormals_survive_the_import(tmp_path: Path) -> None:
    assert program(tmp_path, "region(); print((np.array([1e-310]) * 0.5)[0] > 0)") == ["True"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_subnormals_survive_kernels_on_every_thread(engine: str, dtype: type[np.floating[Any]]) -> None:
    x = tiny_values(dtype)
    expected, _ = reference.sgd(x, x[::-1], {}, 1, lr=1.0)
    assert np.count_nonzero(np.abs(expected) < np.finfo(dtype).smallest_normal) > 1_000
    sp.set_threading(engine)
    sp.set_num_threads(4)
    _core._share_blocks_of(300)
    p = x.copy()
    sp.SGD(p, lr=1.0).step(x[::-1].copy())
    assert min(_core._blocks_run()) > 0
    assert p.tobytes() == expected.tobytes()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("threads", [1, 3])
def test_a_callers_mode_neither_changes_the_bits_nor_is_changed(mode: Mode, engine: str, threads: int) -> None:
    inputs = [(tiny_values(dtype), np.linspace(-105, 90, 4_000, dtype=dtype)) for dtype in (np.float32, np.float64)]
    expected = [results_for(*arrays) for arrays in inputs]
    sp.set_threading(engine)
    sp.set_num_threads(threads)
    _core._share_blocks_of(300 if threads > 1 else 0)
    mode.set(mode.odd)
    flushed = inputs[0][0] * np.float32(1)
    results = [results_for(*arrays) for arrays in inputs]
    mode.set(mode.odd)
    sp.global_norm([inputs[0][0]])
    after = mode.get()
    mode.set(mode.default)
    assert np.count_nonzero(flushed) < np.count_nonzero(inputs[0][0])  # the mode is what it should be
    assert results == expected
    assert after == mode.odd


@pytest.mark.skipif("openmp" not in ENGINES, reason="built without OpenMP")
def test_the_mode_of_a_team_that_another_library_left_is_put_back(mode: Mode) -> None:
    x = tiny_values(np.float64)
    sp.set_threading("openmp")
    sp.set_num_threads(3)
    _core._share_blocks_of(300)
    if mode.set_team(mode.odd, 3) < 3 or mode.set_team(mode.odd, 3) > 0:
        pytest.skip("the library has another team")
    mode.set(mode.default)
    p = x.copy()
    sp.SGD(p, lr=1.0).step(x[::-1].copy())
    left = mode.set_team(mode.default, 3)
    assert min(_core._blocks_run()) > 0
    assert p.tobytes() == reference.sgd(x, x[::-1], {}, 1, lr=1.0)[0].tobytes()
    assert left == 2  # of three, the caller had the default mode already
