"""`steepest bench`: every kernel against NumPy and against this machine's memory.

Contenders start from the same arrays; their answers are compared before anything is timed. Then they
take turns in this process, each after a call of its own that warms the caches for it; times are
medians over the turns. Arrays are float32.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import steepest as sp
from steepest import _as_written, _contenders, _core, losses, reference

Array = NDArray[Any]
Loss = Callable[..., tuple[Any, Any]]

SIZES = (1_000, 10_000, 100_000, 1_000_000, 4_000_000, 16_000_000, 64_000_000)
FEW_SIZES = (1_000, 100_000, 16_000_000)
NAMES = ("ours", "numpy", "out=")  # and "stream": a loop that only adds
_LONG = 0.2  # seconds; a longer call leaves nothing of what another's first finds in the caches
_TILE = 1 << 20  # larger arrays repeat their first so many elements


class WrongAnswerError(Exception):
    """A contender computes something else."""


class Contender(NamedTuple):
    """One way to compute a kernel: `call` does it once, and again on its own result.

    `answer` gives what it computed so far: numbers, and arrays with what each started from; nothing if it computes
    something else.
    """

    call: Callable[[], object]
    answer: Callable[[], list[tuple[Any, Any]]] = list


class Kernel(NamedTuple):
    """What is timed. It updates, writes and reads so many arrays of one size."""

    make: Callable[[int], dict[str, Contender]]
    updated: int
    written: int
    read: int

    @property
    def bytes(self) -> int:
        """What must be moved per element."""
        return 4 * (2 * self.updated + self.written + self.read)


class Row(NamedTuple):
    """The measured seconds per call: `seconds["ours" | "numpy" | "out=" | "stream"]`."""

    kernel: str
    n: int
    seconds: dict[str, float]

    @property
    def bandwidth(self) -> float:
        """Bytes per second of ours, counting each array's elements once for reading and once for writing."""
        return KERNELS[self.kernel].bytes * self.n / self.seconds["ours"]

    def ratio(self, name: str) -> float:
        """How many times as long as ours another takes."""
        return self.seconds[name] / self.seconds["ours"]


def random(n: int, seed: int) -> Array:
    """Standard normal float32; what is large repeats itself."""
    tile = np.random.default_rng(seed).standard_normal(min(n, _TILE), np.float32)
    return np.resize(tile, n)


def _rule(make: Callable[..., sp.Optimizer], n: int) -> dict[str, Contender]:
    start, g = random(n, 0), np.abs(random(n, 1))
    p = {name: start.copy() for name in NAMES}
    optimizer = make(p["ours"])
    options = {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}
    name = type(optimizer).__name__
    buffers = {"m": np.zeros(n, "f4"), "v": np.zeros(n, "f4"), "a": np.empty(n, "f4"), "b": np.empty(n, "f4")}

    def formula(rule: Callable[..., None], p: Array, state: dict[str, Any]) -> Callable[[], None]:
        steps = count(1)
        return lambda: rule(p, g, state, next(steps), **options)

    calls: dict[str, Callable[[], object]] = {
        "ours": partial(optimizer.step, g),
        "numpy": formula(_as_written.formula(name), p["numpy"], {}),
    }
    if name.lower() in _contenders.PREALLOCATED:
        calls["out="] = formula(_contenders.PREALLOCATED[name.lower()], p["out="], buffers)
    contenders = {name: Contender(call, partial(_moved, p[name], start)) for name, call in calls.items()}
    return contenders | {"stream": stream([p["ours"], *state_arrays(optimizer)], [], [g])}


def state_arrays(optimizer: sp.Optimizer) -> list[Array]:
    """The state of an optimizer of one array: the arrays themselves."""
    state = optimizer.state_dict(copy=False)["state"][0]
    return [x for x in state.values() if isinstance(x, np.ndarray)]


def _moved(p: Array, start: Array) -> list[tuple[Any, Any]]:
    return [(p, start)]


def _rule_kernel(make: Callable[..., sp.Optimizer]) -> Kernel:
    return Kernel(partial(_rule, make), 1 + len(state_arrays(make(np.zeros(1, np.float32)))), 0, 1)


def _loss(ours: Loss, written: Loss, preallocated: Loss, classes: int, n: int) -> dict[str, Contender]:
    x, y = random(n, 0), np.abs(np.tanh(random(n, 1)))
    out, buffers = np.empty_like(x), {name: np.empty_like(x) for name in "abc"}
    if classes:
        rows = max(1, n // classes)
        x, out = (np.resize(a, (rows, classes)) for a in (x, out))
        y = np.random.default_rng(2).integers(classes, size=rows)
        buffers = {"a": np.empty_like(x), "rows": np.arange(rows), "column": np.empty((rows, 1), np.float32)}
    calls = {
        "ours": partial(ours, x, y, out=out),
        "numpy": partial(written, x, y, {}),
        "out=": partial(preallocated, x, y, buffers),
    }
    contenders = {name: loss_contender(call) for name, call in calls.items()}
    if ours is _global_norm:
        return contenders | {"stream": stream([], [], [x])}
    return contenders | {"stream": stream([], [out], [x] if classes else [x, y])}


def stream(updated: list[Array], written: list[Array], read: list[Array]) -> Contender:
    """A loop that only adds, over the very arrays of ours: pages differ in speed, in a virtual machine by far.

    What is read should not be negative, lest a sum of squares becomes so.
    """
    return Contender(partial(_core._stream, updated, written, read))


def loss_contender(call: Callable[[], tuple[Any, Any]]) -> Contender:
    """A contender that gives the loss and its gradient."""
    return Contender(call, lambda: [(part, np.float32(0)) for part in call() if part is not None])


def _global_norm(x: Array, y: Array, out: Array) -> tuple[float, None]:
    return sp.global_norm([x]), None


def _both(name: str) -> tuple[Loss, Loss]:
    return getattr(_contenders, name), getattr(_contenders, f"{name}_preallocated")


def _kernels() -> dict[str, Kernel]:
    rules = sorted(reference.RULES, key=lambda name: name != "AdamW")
    kernels = {name.lower(): _rule_kernel(getattr(sp, name)) for name in rules}
    kernels["sgd_momentum"] = _rule_kernel(partial(sp.SGD, momentum=0.9))
    for name in ("mse", "mae", "huber"):
        kernels[name] = Kernel(partial(_loss, getattr(losses, name), *_both(name), 0), 0, 1, 2)
    binary, softmax = _both("binary_cross_entropy"), _both("softmax_cross_entropy")
    kernels["binary_cross_entropy"] = Kernel(partial(_loss, losses.binary_cross_entropy, *binary, 0), 0, 1, 2)
    for classes in (10, 1000):
        make_loss = partial(_loss, losses.softmax_cross_entropy, *softmax, classes)
        kernels[f"softmax_{classes}"] = Kernel(make_loss, 0, 1, 1)
    kernels["global_norm"] = Kernel(partial(_loss, _global_norm, *_both("global_norm"), 0), 0, 0, 1)
    return kernels


KERNELS = _kernels()


def check(contenders: Mapping[str, Contender], steps: int = 3, tolerance: float = 1e-3) -> None:
    """Takes some steps with each; `WrongAnswerError` if one is further from ours than that part of the way."""
    comparable = {name: contender for name, contender in contenders.items() if contender.answer is not list}
    for contender in comparable.values():
        for _ in range(steps):
            contender.call()
    for name, contender in comparable.items():
        for (a, start), (b, _) in zip(contenders["ours"].answer(), contender.answer(), strict=True):
            flat = [np.ravel(x) for x in np.broadcast_arrays(a, b, start)]
            for i in range(0, len(flat[0]), _TILE):
                x, y, origin = (part[i : i + _TILE] for part in flat)
                way, apart = float(np.abs(y - origin).max()), float(np.abs(y - x).max())
                if not apart <= tolerance * way:
                    raise WrongAnswerError(f"{name} differs from ours by {apart:g} in a change of {way:g}")


def measure(name: str, n: int, seconds: float = 1.0) -> Row:
    """Checks the contenders, then times them for about so many seconds."""
    contenders = KERNELS[name].make(n)
    try:
        check(contenders)
    except WrongAnswerError as error:
        raise WrongAnswerError(f"{name}, {n:,} elements: {error}") from None
    return Row(name, n, take_turns({name: contender.call for name, contender in contenders.items()}, seconds))


def take_turns(calls: Mapping[str, Callable[[], object]], seconds: float = 1.0) -> dict[str, float]:
    """The median time of each call, after at least five rounds and so many seconds."""
    deadline = time.perf_counter() + seconds
    taken = rounds(calls, lambda times: len(times["ours"]) >= 5 and time.perf_counter() >= deadline)
    return {name: median(times) for name, times in taken.items()}


def rounds(
    calls: Mapping[str, Callable[[], object]],
    enough: Callable[[Mapping[str, list[float]]], bool],
    *,
    warm: float = 0.0,
    turn: float = 2e-3,
    before: Callable[[str], object] | None = None,
) -> dict[str, list[float]]:
    """The time of each call in every round, until these are enough.

    In a round the calls take turns: each warms the caches for itself, once or for so many seconds, then runs
    for a turn or once. `before(name)` precedes each call and is not timed.
    """
    first = {name: partial(before, name) if before else None for name in calls}
    once = {name: min(_time(call, 1, first[name]) for _ in range(3)) for name, call in calls.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    while not enough(taken):
        for name, call in calls.items():
            if once[name] < _LONG:
                _time(call, max(1, int(warm / once[name])), first[name])
            taken[name].append(_time(call, max(1, int(turn / once[name])), first[name]))
    return taken


def _time(call: Callable[[], object], repeats: int, before: Callable[[], object] | None) -> float:
    """Seconds per call."""
    taken = 0.0
    if before is None:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        taken = time.perf_counter() - start
    else:
        for _ in range(repeats):
            before()
            start = time.perf_counter()
            call()
            taken += time.perf_counter() - start
    return taken / repeats


def free_memory() -> int:
    """The memory that can be had, in bytes; 8 GiB where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 8 << 30


def fits(n: int) -> bool:
    """Whether the contenders' arrays of n elements fit into the free memory."""
    return 25 * 4 * n < free_memory()


def run(
    kernels: Sequence[str] | None = None,
    sizes: Sequence[int] | None = None,
    *,
    quick: bool = False,
    everything: bool = False,
) -> int:
    """Prints the table; 1 if a contender's answer is wrong, else 0.

    AdamW at all `SIZES` and the other kernels at a few; `quick` leaves out what takes long,
    `everything` takes all kernels at all sizes. `kernels` and `sizes` choose instead.

    Raises ValueError for a kernel that is not among `KERNELS` or a size below 1.
    """
    if unknown := set(kernels or ()) - set(KERNELS):
        raise ValueError(f"kernels: expected some of {', '.join(KERNELS)}, got {', '.join(sorted(unknown))}")
    if min(sizes or (1,)) < 1:
        raise ValueError(f"sizes: expected numbers of elements from 1 up, got {min(sizes or ())}")
    print(_HEAD.format(version=sp.__version__, isa=_core.build_info()["isa"], threads=sp.get_num_threads(),
                       engine=sp.get_threading(), numpy=np.__version__))  # fmt: skip
    for name in kernels or KERNELS:
        few = FEW_SIZES if name != "adamw" and not everything else SIZES
        for n in sizes or [n for n in few if not quick or n <= 1_000_000]:
            if not fits(n):
                print(f"{name:<20} {n:>10,}   left out: too little memory")
                continue
            try:
                print(_line(measure(name, n, 0.2 if quick else 1.0)), flush=True)
            except WrongAnswerError as error:
                print(f"steepest: error: {error}", file=sys.stderr)
                return 1
    return 0


_HEAD = """\
steepest {version}, {isa}, {threads} threads ({engine}), NumPy {numpy}, float32, median times

numpy    as people write it, on one thread; out=: with preallocated arrays
GB/s     of ours, counting every array that is read or written once (AdamW: 28 bytes per element)
stream   a loop that only adds, over as many arrays and with as many threads, relative to ours

kernel                        n        ours       numpy        out=  numpy/ours   out=/ours     GB/s  of stream"""


def _line(row: Row) -> str:
    times = "".join(f"{duration(row.seconds.get(name)):>12}" for name in NAMES)
    ratios = "".join(f"{row.ratio(name):>11.1f}x" if name in row.seconds else " " * 12 for name in NAMES[1:])
    return f"{row.kernel:<20} {row.n:>10,}{times}{ratios} {row.bandwidth / 1e9:>8.1f} {row.ratio('stream'):>9.0%}"


def duration(seconds: float | None) -> str:
    """As a number with its unit; "-" for None."""
    if seconds is None:
        return "-"
    for unit, factor in (("us", 1e6), ("ms", 1e3)):
        if seconds * factor < 1000:
            return f"{seconds * factor:.1f} {unit}" if seconds * factor < 100 else f"{seconds * factor:.0f} {unit}"
    return f"{seconds:.2f} s"
