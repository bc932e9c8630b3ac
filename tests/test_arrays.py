"""Every kind of array in every role gives the right bits, or is refused with every byte as before."""

from __future__ import annotations

import collections
import contextlib
import threading
import time
import types
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import steepest as sp
from steepest import losses, reference

Array = NDArray[Any]
DTYPES = [np.float32, np.float64]
both_dtypes = pytest.mark.parametrize("dtype", DTYPES)

# ---------------------------------------------------------------------------------------------
# Kinds: of a plain (4, 6) array, one that holds the same values (as far as the kind allows)


class Plain(np.ndarray[Any, Any]):
    pass


class Lying(np.ndarray[Any, Any]):
    """Its attributes are not what the array is."""

    shape = (1000, 1000)  # type: ignore[override]
    size = 1_000_000

    def astype(self, *args: Any, **kwargs: Any) -> Any:
        return np.zeros(1)

    def copy(self, order: Any = "C") -> Any:
        return np.zeros(1)


class Converts:
    def __init__(self, x: Array) -> None:
        self.x = x

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        return self.x


def misaligned(x: Array) -> Array:
    buffer = bytearray(x.nbytes + 1)
    y = np.frombuffer(buffer, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    y[...] = x
    return y


def read_only(x: Array) -> Array:
    y = x.copy()
    y.flags.writeable = False
    return y


def strided(x: Array) -> Array:
    y = np.zeros((x.shape[0], 2 * x.shape[1]), x.dtype)[:, ::2]
    y[...] = x
    return y


def mapped(mode: Any) -> Callable[[Array, Path], Array]:
    def make(x: Array, folder: Path) -> Array:
        path = folder / "x.dat"
        path.write_bytes(x.tobytes())
        return np.memmap(path, x.dtype, mode, shape=x.shape)

    return make


def zeros_of(dtype: str) -> Callable[[Array], Array]:
    return lambda x: np.zeros(x.shape, dtype)


OTHER_DTYPES = ["float16", "longdouble", "int32", "int64", "uint8", "bool", "complex64", "complex128", "object"]
OTHER_DTYPES += ["S4", "U4", "M8[s]", "m8[s]"]
SOUND: dict[str, Callable[..., Any]] = {
    "C": lambda x: x.copy(),
    "one element in": lambda x: np.concatenate([[0], x.ravel()]).astype(x.dtype)[1:].reshape(x.shape),
    "rows of a larger one": lambda x: np.concatenate([x, x, x])[4:8],
    "subclass": lambda x: x.copy().view(Plain),
    "lying subclass": lambda x: x.copy().view(Lying),
    "recarray": lambda x: x.copy().view(np.recarray),
    "memmap r+": mapped("r+"),
    "memmap copy-on-write": mapped("c"),
}
READ_ONLY: dict[str, Callable[..., Any]] = {
    "read-only": read_only,
    "memmap r": mapped("r"),
    "bytes": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
}
LAYOUT: dict[str, tuple[Callable[..., Any], str]] = {  # refused with ValueError that has the word
    "strided": (strided, "contiguous"),
    "negative stride": (lambda x: x[::-1].copy()[::-1], "contiguous"),
    "zero stride": (lambda x: np.lib.stride_tricks.as_strided(x[:1].copy(), x.shape, (0, x.itemsize)), "contiguous"),
    "broadcast": (lambda x: np.broadcast_to(x[:1].copy(), x.shape), "contiguous"),
    "field": (lambda x: np.zeros(x.shape, [("a", x.dtype), ("b", x.dtype)])["a"], "contiguous"),
    "misaligned": (misaligned, "aligned"),
    "wrong shape": (lambda x: x.T.copy(), "shape"),
    "flat": (lambda x: x.ravel(), "shape"),
    "one axis more": (lambda x: x.reshape(1, *x.shape).copy(), "shape"),
    "0-d": (lambda x: np.array(0.5, x.dtype), "shape"),
    "0-size": (lambda x: np.empty((0, 6), x.dtype), "shape"),
}
TYPE: dict[str, tuple[Callable[..., Any], str]] = {  # refused with TypeError that has the word
    "big-endian": (lambda x: x.astype(x.dtype.newbyteorder(">")), "byte order"),
    "masked": (lambda x: np.ma.masked_array(x.copy(), x > 0), "masked"),
    "the other dtype": (lambda x: x.astype(np.float64 if x.dtype == np.float32 else np.float32), "float"),
    **{name: (zeros_of(name), "dtype") for name in OTHER_DTYPES},
    "list": (lambda x: x.tolist(), "list"),
    "tuple": (lambda x: tuple(x), "tuple"),
    "scalar": (lambda x: x[0, 0], "float"),
    "number": (lambda x: 1.0, "float"),
    "array-like": (Converts, "Converts"),
    "memoryview": (lambda x: memoryview(x), "memoryview"),
    "buffer": (lambda x: bytearray(x.tobytes()), "bytearray"),
    "string": (lambda x: "abc", "str"),
    "object": (lambda x: object(), "object"),
}

Outcome = tuple[type[Exception], str] | None


def kinds(*, written: bool, fortran: Outcome) -> dict[str, tuple[Callable[..., Any], Outcome]]:
    """What an argument that must be a plain, C-ordered (4, 6) array does with each kind: None if it takes it."""
    refused_if_written: Outcome = (ValueError, "writeable") if written else None
    return {
        **{name: (make, None) for name, make in SOUND.items()},
        **{name: (make, refused_if_written) for name, make in READ_ONLY.items()},
        **{name: (make, (ValueError, word)) for name, (make, word) in LAYOUT.items()},
        **{name: (make, (TypeError, word)) for name, (make, word) in TYPE.items()},
        "Fortran": (lambda x: np.asfortranarray(x), fortran),
    }


def make_kind(make: Callable[..., Any], x: Array, folder: Path) -> Any:
    return make(x, folder) if "make" in make.__qualname__ else make(x)


def contents(x: Any) -> bytes:
    return x.tobytes(order="A") if isinstance(x, np.ndarray) else repr(x).encode()


def values(dtype: Any, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((4, 6)).astype(dtype)


def check(outcome: Outcome, name: str, call: Callable[[], Any], unchanged: Callable[[], Any]) -> bool:
    """Calls; whether it was taken. A refusal names the argument and changes nothing."""
    before = unchanged()
    if outcome is None:
        call()
        return True
    error, word = outcome
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert message.startswith(f"{name}: expected") and "got" in message and word in message, message
    assert unchanged() == before
    return False


# ---------------------------------------------------------------------------------------------
# The product of kinds and roles


@pytest.mark.parametrize("kind", kinds(written=True, fortran=None))
@both_dtypes
def test_parameters(kind: str, dtype: Any, tmp_path: Path) -> None:
    make, outcome = kinds(written=True, fortran=None)[kind]
    p, g = values(dtype, 0), values(dtype, 1)
    x = make_kind(make, p, tmp_path)
    if kind in ("wrong shape", "flat", "one axis more", "0-d", "0-size", "the other dtype"):
        outcome = None  # any shape will do, and either dtype
        p, g = np.array(x), np.full(np.shape(x), 0.5, x.dtype)
    expected, _ = reference.adam(p, g, {}, 1)

    def call() -> None:
        opt = sp.Adam({"x": x})
        opt.step({"x": np.asfortranarray(g) if kind == "Fortran" else g})

    if check(outcome, "params['x']", call, lambda: contents(x)):
        np.testing.assert_array_equal(np.asarray(x), expected)


@pytest.mark.parametrize("kind", kinds(written=False, fortran=(ValueError, "memory order")))
@both_dtypes
def test_gradients(kind: str, dtype: Any, tmp_path: Path) -> None:
    make, outcome = kinds(written=False, fortran=(ValueError, "memory order"))[kind]
    p, g = values(dtype, 0), values(dtype, 1)
    start = p.copy()
    x = make_kind(make, g, tmp_path)
    opt = sp.Adam([np.ones(3, dtype), p])

    def unchanged() -> Any:
        return contents(x), contents(p), opt.steps, [{k: str(v) for k, v in s.items()} for s in opt._core.snapshot()]

    if check(outcome, "grads[1]", lambda: opt.step([np.ones(3, dtype), x]), unchanged):
        expected, _ = reference.adam(start, g, {}, 1)
        np.testing.assert_array_equal(p, expected)
        np.testing.assert_array_equal(np.asarray(x), g)


@pytest.mark.parametrize("kind", kinds(written=False, fortran=(ValueError, "memory order")))
@both_dtypes
def test_loaded_states(kind: str, dtype: Any, tmp_path: Path) -> None:
    make, outcome = kinds(written=False, fortran=(ValueError, "memory order"))[kind]
    p, g, m = values(dtype, 0), values(dtype, 1), values(dtype, 2)
    start = p.copy()
    x = make_kind(make, m, tmp_path)
    opt = sp.Lion(p, lr=0.5)
    saved = opt.state_dict() | {"steps": 3}
    saved["state"][0].update(step=3, exp_avg=x)

    def unchanged() -> Any:
        return contents(x), contents(p), opt.steps, [{k: str(v) for k, v in s.items()} for s in opt._core.snapshot()]

    if check(outcome, "state[0]['exp_avg']", lambda: opt.load_state_dict(saved), unchanged):
        opt.step(g)
        expected, _ = reference.lion(start, g, {"exp_avg": m}, 4, lr=0.5)
        np.testing.assert_array_equal(p, expected)
        np.testing.assert_array_equal(np.asarray(x), m)


F_REFUSED: Outcome = (ValueError, "C-contiguous")


@pytest.mark.parametrize("role", ["prediction", "target", "sample_weight", "out"])
@pytest.mark.parametrize("kind", kinds(written=True, fortran=F_REFUSED))
@both_dtypes
def test_arguments_of_losses(role: str, kind: str, dtype: Any, tmp_path: Path) -> None:
    make, outcome = kinds(written=role == "out", fortran=F_REFUSED)[kind]
    a = {name: values(dtype, seed) for seed, name in enumerate(("prediction", "target", "sample_weight", "out"))}
    a["sample_weight"] = abs(a["sample_weight"])
    loss, gradient, _ = reference.mse(a["prediction"], a["target"], sample_weight=a["sample_weight"])
    given: dict[str, Any] = dict(a)
    given[role] = x = make_kind(make, a[role], tmp_path)
    name = role
    if role == "prediction" and kind in ("wrong shape", "flat", "one axis more", "0-d", "0-size", "the other dtype"):
        name = "target"  # the prediction is what the others are compared with
    if role == "sample_weight" and kind == "0-d":
        outcome = None  # one weight for all
        loss, gradient, _ = reference.mse(a["prediction"], a["target"], sample_weight=np.array(x))
    result: list[Any] = []

    def call() -> None:
        result.append(losses.mse(**given))

    if check(outcome, name, call, lambda: [contents(y) for y in given.values()]):
        value, got = result[0]
        assert value == loss and (got is x) == (role == "out")
        np.testing.assert_array_equal(np.asarray(got), gradient)


# ---------------------------------------------------------------------------------------------
# Memory order


@both_dtypes
def test_orders_of_parameter_and_gradient_agree(dtype: Any) -> None:
    g = values(dtype, 1)
    for order, other in (("C", "F"), ("F", "C")):
        p = np.array(values(dtype, 0), order=order)  # type: ignore[call-overload]
        opt = sp.SGD(p, lr=1.0, momentum=0.9)
        before = contents(p)
        with pytest.raises(ValueError, match=r"grads: expected the memory order of params, got the other one; numpy\."):
            opt.step(np.array(g, order=other))  # type: ignore[call-overload]
        assert contents(p) == before and opt.steps == 0
        opt.step(np.array(g, order=order))  # type: ignore[call-overload]
        np.testing.assert_array_equal(p, values(dtype, 0) - g)
        state = opt.state_dict()["state"][0]["momentum_buffer"]
        np.testing.assert_array_equal(state, g)
        assert state.flags[f"{order}_CONTIGUOUS"]


def test_arrays_that_are_both_take_either() -> None:
    for shape in [(5,), (5, 1), (1, 5), (1, 1, 5), (0, 7), ()]:
        p = np.ones(shape)
        sp.SGD(p, lr=1.0).step(np.full(shape, 0.5, order="F"))
        np.testing.assert_array_equal(p, 0.5)


# ---------------------------------------------------------------------------------------------
# Overlaps


def test_overlapping_arrays_are_refused() -> None:
    whole = np.arange(40.0)
    a, b = whole[:20], whole[19:39]
    apart = whole[20:]
    with pytest.raises(ValueError, match=r"params\[1\]: .*overlaps params\[0\]; pass a copy"):
        sp.Adam([a, b])
    with pytest.raises(ValueError, match=r"params\['y'\].*overlaps params\['x'\]"):
        sp.Adam({"x": a, "y": a})
    with pytest.raises(ValueError, match=r"params\[1\].*overlaps params\[0\]"):
        sp.Adam([{"params": a}, {"params": a.view(Plain)}])
    opt = sp.Adam([a, apart])
    before = whole.copy()
    g = np.ones(20)
    for grads, words in [
        ([a, g], r"grads\[0\].*overlaps params\[0\]"),
        ([apart, g], r"grads\[0\].*overlaps params\[1\]"),
        ([g, a], r"grads\[1\].*overlaps params\[0\]"),
        ([whole[5:25], None], r"grads\[0\].*overlaps"),
        ([None, whole.view(np.uint8)[8:168].view(np.float64)], r"grads\[1\].*overlaps"),
    ]:
        with pytest.raises(ValueError, match=words):
            opt.step(grads)
        np.testing.assert_array_equal(whole, before)
        assert opt.steps == 0
    opt.step([g, g])  # two gradients may be one: they are only read
    np.testing.assert_allclose(whole, before - 1e-3)


def test_neighbours_in_one_buffer_do_not_overlap() -> None:
    whole = np.zeros(30)
    params = [whole[:10], whole[10:10], whole[10:20], whole[20:]]
    sp.SGD(params, lr=1.0).step([np.full(10, 1.0), np.empty(0), np.full(10, 2.0), np.full(10, 3.0)])
    np.testing.assert_array_equal(whole, -np.repeat([1.0, 2.0, 3.0], 10))


@both_dtypes
def test_out_of_a_loss_may_be_the_prediction_and_nothing_else(dtype: Any) -> None:
    whole = np.ones(100, dtype)
    x, y, w = whole[:24].reshape(4, 6), values(dtype, 1), abs(values(dtype, 2))
    for out in (whole[1:25].reshape(4, 6), y, w):
        before = [contents(z) for z in (whole, y, w)]
        with pytest.raises(ValueError, match=r"out: expected memory of its own, got memory that overlaps"):
            losses.mse(x, y, sample_weight=w, out=out)
        assert [contents(z) for z in (whole, y, w)] == before
    expected = losses.mse(x, y, sample_weight=w)
    loss, gradient = losses.mse(x, y, sample_weight=w, out=x)
    assert gradient is x and loss == expected[0]
    np.testing.assert_array_equal(x, expected[1])
    assert (whole[24:] == 1).all()


# ---------------------------------------------------------------------------------------------
# Arrays that change under an optimizer


def test_a_registered_array_cannot_be_resized() -> None:
    base = np.ones(8)
    owner = np.ones(8)
    opt = sp.SGD([base[2:6], owner])
    for array in (base, owner):
        with pytest.raises(ValueError, match="cannot resize"):
            array.resize(1000, refcheck=False)
    opt.step([np.ones(4), np.ones(8)])
    del opt
    owner.resize(16, refcheck=False)


def test_a_registered_array_whose_form_changes() -> None:
    p, g = np.ones(6), np.arange(6.0).reshape(2, 3)
    opt = sp.SGD(p, lr=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        p.shape = (2, 3)
    with pytest.raises(ValueError, match="memory order"):
        opt.step(np.asfortranarray(g))
    opt.step(g)
    np.testing.assert_array_equal(p, 1 - g)
    for dtype in (np.float32, np.int64, ">f8"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            p.dtype = np.dtype(dtype)  # type: ignore[assignment,misc]
        for gradient in (g, np.ones(p.shape)):
            with pytest.raises(ValueError, match="params: expected the array that the optimizer was made with"):
                opt.step(gradient)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            p.dtype = np.dtype(np.float64)  # type: ignore[misc]
    np.testing.assert_array_equal(p, 1 - g)


def test_a_parameter_that_becomes_read_only() -> None:
    p = np.ones(3)
    opt = sp.Adam({"w": p})
    p.flags.writeable = False
    with pytest.raises(ValueError, match=r"params\['w'\]: expected a writeable array, got a read-only one"):
        opt.step({"w": np.ones(3)})
    assert (p == 1).all() and opt.steps == 0
    p.flags.writeable = True
    opt.step({"w": np.ones(3)})
    assert (p != 1).all()


def run_together(*functions: Callable[[], object]) -> None:
    """Runs each in a thread, and raises what the first of them raised."""
    errors: list[BaseException] = []

    def guarded(f: Callable[[], object]) -> None:
        try:
            f()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(f,)) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    for error in errors:
        raise error


@pytest.mark.parametrize("size", [3, 150_000])
@both_dtypes
def test_two_threads_step_one_optimizer(dtype: Any, size: int) -> None:
    steps, g = 100, np.full(size, 0.5, dtype)
    w, v, alone = np.zeros(size, dtype), np.ones(size, dtype), np.ones(size, dtype)
    sgd, adam, opt = sp.SGD(w, lr=1.0), sp.Adam(v, max_norm=1.0), sp.Adam(alone, max_norm=1.0)

    def work() -> None:
        for _ in range(steps):
            sgd.step(g)
            adam.step(g)

    run_together(work, work, work)
    assert sgd.steps == adam.steps == adam.state_dict()["state"][0]["step"] == 3 * steps
    np.testing.assert_array_equal(w, -1.5 * steps)
    for _ in range(3 * steps):
        opt.step(g)
    np.testing.assert_array_equal(v, alone)  # constant gradients: the order of the steps does not matter


def test_a_thread_saves_and_loads_while_another_steps() -> None:
    size = 150_000
    w, g = np.ones(size), np.ones(size)
    opt = sp.Momentum(w)
    first = opt.state_dict()

    def step() -> None:
        for _ in range(60):
            opt.step(g)

    def save_and_load() -> None:
        for _ in range(30):
            state = opt.state_dict()["state"][0]["momentum_buffer"]
            assert (state == state[0]).all()  # never half a step
            opt.lr = 0.5
            opt.load_state_dict(first)

    run_together(step, save_and_load)
    assert (w == w[0]).all()


def test_a_schedule_that_uses_its_optimizer_while_others_wait_is_refused() -> None:
    others_wait = threading.Event()

    def schedule(step: int) -> float:
        if step == 0:
            others_wait.set()
            time.sleep(0.05)
            with pytest.raises(RuntimeError, match="middle of a step"):
                opt.step(np.ones(2))
        return 0.5

    def step_beside() -> None:
        others_wait.wait()
        opt.step(np.ones(2))

    w = np.zeros(2)
    opt = sp.SGD(w, lr=schedule)
    run_together(lambda: opt.step(np.ones(2)), step_beside, step_beside)
    assert opt.steps == 3 and (w == -1.5).all()


def test_gradients_that_are_freed_or_resized_while_a_step_reads_them() -> None:
    size = 400_000
    w = np.zeros(size)
    opt = sp.SGD(w, lr=1.0)
    grads = [np.ones(size)]
    done = threading.Event()
    refused: list[int] = []
    deadline = time.monotonic() + 60

    def step() -> None:
        try:
            while opt.steps < 40 or (not refused and time.monotonic() < deadline):
                with contextlib.suppress(ValueError):  # it was resized just then
                    opt.step(grads[0])
        finally:
            done.set()

    def disturb() -> None:
        while not done.is_set():
            g = grads[0]
            try:
                g.resize(1, refcheck=False)
            except ValueError:
                refused.append(1)
            grads[0] = np.ones(size)
            time.sleep(1e-4)

    run_together(step, disturb)
    assert refused
    np.testing.assert_array_equal(w, -opt.steps)


def test_arrays_of_a_loss_are_held_while_it_runs() -> None:
    x, y = np.ones((1000, 400)), np.zeros((1000, 400))
    done = threading.Event()

    def call() -> None:
        try:
            for _ in range(20):
                loss, gradient = losses.mse(x, y)
                assert loss == 1.0 and (gradient == 2 / 400_000).all()
        finally:
            done.set()

    def disturb() -> None:
        while not done.is_set():
            for array in (x, y):
                array.resize((1000, 401), refcheck=False)
                array.resize((1000, 400), refcheck=False)

    try:
        run_together(call, disturb)
    except ValueError as error:  # refused while it ran, or the shapes differed just then
        assert "resize" in str(error) or "expected shape" in str(error)


# ---------------------------------------------------------------------------------------------
# global_norm


@both_dtypes
def test_arguments_of_global_norm(dtype: Any, tmp_path: Path) -> None:
    x = values(dtype, 0)
    shapes = ("wrong shape", "flat", "one axis more", "0-d", "0-size", "the other dtype")
    for kind, (make, outcome) in kinds(written=False, fortran=None).items():
        y = make_kind(make, x, tmp_path)
        taken = None if kind in shapes else outcome
        if check(taken, "arrays[1]", partial(sp.global_norm, [x, y]), partial(contents, y)):
            assert sp.global_norm([x, y]) == reference.global_norm([x, np.asarray(y)]), kind
    assert sp.global_norm([]) == sp.global_norm(iter(())) == 0.0
    assert sp.global_norm(y for y in (x, x)) == reference.global_norm([x, x])
    with pytest.raises(TypeError, match="arrays: expected a sequence of arrays, got int"):
        sp.global_norm(3)  # type: ignore[arg-type]


def test_a_gradient_that_became_a_parameter_is_refused() -> None:
    """What was found apart at one step is looked at again when the optimizer has more arrays."""
    p, q, g = (np.zeros(4, np.float32) for _ in range(3))
    opt = sp.SGD([p], lr=1.0)
    opt.step([g])
    opt.add_param_group({"params": [g]})
    with pytest.raises(ValueError, match="overlaps"):
        opt.step([[g], [q]])


def test_gradients_in_other_guises() -> None:
    """A dtype object of its own, a subclass, a tuple, a mapping that makes what it lacks: judged by what they hold."""
    p = np.zeros(4, np.float32)
    g = np.ones(4, np.dtype(np.float32, metadata={"unit": "m"}))
    opt = sp.SGD({"p": p}, lr=1.0)
    opt.step({"p": g})
    opt.step({"p": g.view(np.memmap)})
    opt.step(types.MappingProxyType({"p": g}))
    assert (p == -3).all()
    with pytest.raises(ValueError, match="expected a gradient for 'p', got none"):
        opt.step(collections.defaultdict(lambda: g))
    assert (p == -3).all()
