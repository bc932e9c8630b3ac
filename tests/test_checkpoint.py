"""Checkpoints: what they hold, that they are whole or refused, and that training resumes to the bit."""

from __future__ import annotations

import functools
import io
import json
import math
import os
import pickle
import re
import stat
import struct
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

import steepest as sp
from steepest import _storage, nn, reference, schedules
from steepest.callbacks import EarlyStopping, History, ModelCheckpoint, ProgressBar, ReduceLROnPlateau
from steepest.train import Trainer

X = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
Y = (X[:, 0] * X[:, 1] > 0).astype(int)
POSIX = pytest.mark.skipif(os.name != "posix", reason="POSIX only")

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {}),
    ("SGD", {"momentum": 0.9, "nesterov": True, "max_norm": 0.5}),
    ("SGD", {"momentum": 0.9, "lr_in_velocity": True}),
    ("Momentum", {"weight_decay": 0.01}),
    ("RMSprop", {}),
    ("RMSprop", {"momentum": 0.9, "centered": True, "eps_inside_sqrt": True}),
    ("Adagrad", {"lr_decay": 0.01, "initial_accumulator_value": 0.1}),
    ("Adam", {"l1": 1e-4, "max_value": 0.3}),
    ("Adam", {"amsgrad": True, "nonfinite": "skip"}),
    ("AdamW", {"amsgrad": True, "epsilon_hat": True, "l2": 1e-4}),
    ("NAdam", {"decoupled_weight_decay": True, "weight_decay": 0.1}),
    ("Lion", {"weight_decay": 0.1}),
]


def new_model(dtype: Any = np.float32, units: int = 6, seed: int = 3) -> nn.Sequential:
    return nn.Sequential(
        [nn.Dense(units), nn.ReLU(), nn.Dropout(0.3), nn.Dense(2)], input_shape=5, seed=seed, dtype=dtype
    )


def new_optimizer(model: nn.Sequential, kind: str = "Adam", options: Any = None) -> sp.Optimizer:
    rate = schedules.cosine(0.02, steps=200, warmup=10)
    optimizer: sp.Optimizer = getattr(sp, kind)(model.param_groups(), lr=rate, **(options or {}))
    return optimizer


def trained(kind: str = "Adam", options: Any = None, epochs: int = 2, dtype: Any = np.float32) -> Trainer:
    model = new_model(dtype)
    trainer = Trainer(model, sp.losses.softmax_cross_entropy, new_optimizer(model, kind, options))
    fit(trainer, epochs)
    return trainer


def fit(trainer: Trainer, epochs: int, **options: Any) -> None:
    trainer.fit(X, Y, batch_size=16, epochs=epochs, seed=7, verbose=False, **options)


def saved(path: Path, trainer: Trainer, **options: Any) -> Path:
    sp.save(path, trainer.model, optimizer=trainer.optimizer, history=trainer.history, **options)
    return path


def resumed(checkpoint: sp.Checkpoint) -> Trainer:
    assert checkpoint.optimizer is not None
    trainer = Trainer(checkpoint.model, sp.losses.softmax_cross_entropy, checkpoint.optimizer)
    trainer.history = checkpoint.history
    return trainer


def bits(value: Any) -> Any:
    """Something that is equal only for the same bits in the same places."""
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    if isinstance(value, dict):
        return [(key, bits(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [bits(item) for item in value]
    return type(value), repr(value)


def everything(model: nn.Sequential, optimizer: sp.Optimizer | None = None, history: History | None = None) -> Any:
    state = None if optimizer is None else (repr(optimizer), bits(optimizer.state_dict()))
    recorded = None if history is None else bits(vars(history))
    return bits(model.params), bits(model.random_state), model.config(), model.frozen, state, recorded


def of(trainer: Trainer) -> Any:
    return everything(trainer.model, trainer.optimizer, trainer.history)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def named(path: Path) -> str:
    """A pattern for the path, which on Windows has backslashes."""
    return re.escape(str(path))


# What is in it


def test_variants_has_every_optimizer() -> None:
    assert {kind for kind, _ in VARIANTS} == set(reference.RULES)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_everything_comes_back(path: Path, kind: str, options: Any, dtype: Any) -> None:
    trainer = trained(kind, options, dtype=dtype)
    checkpoint = sp.load(saved(path, trainer))
    again = resumed(checkpoint)
    assert of(again) == of(trainer)
    assert [dict(g)["lr"] for g in again.optimizer.param_groups] == [g["lr"] for g in trainer.optimizer.param_groups]
    assert (checkpoint.epoch, checkpoint.version) == (2, sp.__version__)

    fit(trainer, 5, initial_epoch=2)
    fit(again, 5, initial_epoch=checkpoint.epoch)
    assert of(again) == of(trainer) == of(trained(kind, options, 5, dtype))

    model = new_model(dtype, seed=8)
    into = resumed(sp.load_into(path, model, optimizer=new_optimizer(model, kind, options)))
    fit(into, 5, initial_epoch=2)
    assert of(into)[0] == of(trainer)[0] and of(into)[4] == of(trainer)[4]


def test_predictions_need_no_optimizer(path: Path) -> None:
    trainer = trained()
    checkpoint = sp.load(saved(path, trainer), optimizer=False)
    assert checkpoint.optimizer is None
    np.testing.assert_array_equal(checkpoint.model.forward(X), trainer.model.forward(X))
    model = new_model(seed=9)
    sp.load_into(path, model)
    np.testing.assert_array_equal(model.forward(X), trainer.model.forward(X))


def test_a_model_alone(path: Path) -> None:
    sp.save(str(path).encode(), new_model())  # type: ignore[arg-type]
    checkpoint = sp.load(str(path))
    assert checkpoint.optimizer is None and checkpoint.epoch == 0 and checkpoint.extra == {}
    assert vars(checkpoint.history) == vars(History())


def test_it_is_a_safetensors_file_and_always_the_same(path: Path) -> None:
    trainer = trained()
    first = saved(path, trainer, extra={"mean": X.mean(0)}).read_bytes()
    assert saved(path, trainer, extra={"mean": X.mean(0)}).read_bytes() == first
    tensors = safetensors.numpy.load_file(path)
    np.testing.assert_array_equal(tensors["model.0.weight"], trainer.model.named_parameters()["0.weight"])
    np.testing.assert_array_equal(tensors["extra.mean"], X.mean(0))
    assert "optimizer.state.0.exp_avg" in tensors, sorted(tensors)


@pytest.mark.parametrize(
    "params",
    [
        lambda model: model.params,
        lambda model: [model.params],
        lambda model: model.named_parameters(),
        lambda model: [{"params": model.named_parameters()}],
        lambda model: [{"params": list(layer.params.values()), "lr": 0.1} for layer in model.layers if layer.params],
        lambda model: [layer.params["weight"].T for layer in model.layers if layer.params],
    ],
)
def test_every_structure_of_parameters(path: Path, params: Any) -> None:
    def step(model: nn.Sequential, optimizer: sp.Optimizer) -> None:
        outputs = model.forward(X, train=True)
        model.backward(sp.losses.softmax_cross_entropy(outputs, Y)[1])
        groups = [gradients(group["params"]) for group in optimizer.param_groups]
        optimizer.step(groups if optimizer._core.grouped else groups[0])

    def gradients(params: Any) -> Any:
        if isinstance(params, dict):
            return {name: gradients(value) for name, value in params.items()}
        if isinstance(params, list):
            return [gradients(value) for value in params]
        return np.full_like(params, 0.5)

    model = new_model()
    optimizer = sp.NAdam(params(model), lr=0.01)
    step(model, optimizer)
    sp.save(path, model, optimizer=optimizer)
    checkpoint = sp.load(path)
    assert checkpoint.optimizer is not None
    assert everything(checkpoint.model, checkpoint.optimizer) == everything(model, optimizer)
    for _ in range(3):
        step(model, optimizer)
        step(checkpoint.model, checkpoint.optimizer)
    assert everything(checkpoint.model, checkpoint.optimizer) == everything(model, optimizer)


def test_a_frozen_model(path: Path) -> None:
    model = new_model()
    model.freeze(1)
    sp.save(path, model, optimizer=new_optimizer(model))
    checkpoint = sp.load(path)
    assert checkpoint.optimizer is not None
    assert everything(checkpoint.model, checkpoint.optimizer) == everything(model, checkpoint.optimizer)
    assert [len(group["params"]) for group in checkpoint.optimizer.param_groups] == [12, 2]


def test_parameters_that_lag_and_groups_of_their_own(path: Path) -> None:
    model = new_model()
    optimizer = sp.NAdam(model.param_groups(weight_decay=0.1), lr=0.01, betas=(0.8, 0.99))
    weights, biases = model.gradients()
    for _ in range(3):
        optimizer.step([weights, None])
    optimizer.step([None, biases])
    optimizer.param_groups[1]["lr"] = 1 / 3
    sp.save(path, model, optimizer=optimizer)
    checkpoint = sp.load(path)
    assert checkpoint.optimizer is not None
    state = checkpoint.optimizer.state_dict()
    assert [state["state"][i]["step"] for i in (0, 1)] == [3, 1]
    assert bits(state) == bits(optimizer.state_dict())
    assert checkpoint.optimizer.steps == 4


SCHEDULES = [
    0.1,
    schedules.constant(0.1),
    schedules.exponential(0.1, 0.9, steps=3, staircase=True),
    schedules.step(0.1, 5, gamma=0.3),
    schedules.multi_step(0.1, [3, 7]),
    schedules.piecewise_constant([3, 7], [0.1, 0.2, 0.3]),
    schedules.linear(0.1, 1 / 3, 10),
    schedules.polynomial(0.1, 10, 2.0, end=0.01),
    schedules.inverse_time(0.1, 0.5, steps=2),
    schedules.cosine(0.1, 20, 5, end=0.01),
    schedules.cosine_restarts(0.1, 5, 2),
    schedules.one_cycle(0.1, 50, anneal="linear", three_phase=True),
    schedules.join([schedules.linear(0.0, 0.1, 5), schedules.join([schedules.constant(0.2)], [])], [5]),
]


def test_schedules_has_every_schedule() -> None:
    assert {s.func.__name__[1:] for s in SCHEDULES if isinstance(s, functools.partial)} == set(schedules.__all__)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_every_schedule_comes_back(path: Path, schedule: Any) -> None:
    model = new_model()
    sp.save(path, model, optimizer=sp.SGD(model.params, lr=schedule))
    optimizer = sp.load(path).optimizer
    assert optimizer is not None and optimizer.param_groups[0]["lr"] == schedule


def warm(step: int) -> float:
    return 0.01 * (step + 1)


class Scale(nn.Layer):
    def __init__(self, by: float, shape: tuple[int, ...] = (1, 2)) -> None:
        self.by, self.shape = by, shape

    def forward(self, x: Any, train: bool) -> Any:
        return np.multiply(x, self.by, out=self.buffer("y", x.shape))

    def backward(self, grad: Any) -> Any:
        return np.multiply(grad, self.by, out=grad)


class MyAdam(sp.Adam):
    pass


def test_what_is_ones_own_is_given_by_name(path: Path) -> None:
    model = nn.Sequential([nn.Dense(2, init=nn.init.glorot_normal), Scale(2.0)], 5)
    rate = schedules.join([schedules.constant(0.1), warm], [2])
    optimizer = MyAdam(model.params, lr=rate)
    for _ in range(3):
        optimizer.step(model.grads)
    sp.save(path, model, optimizer=optimizer)
    custom = {"Scale": Scale, "MyAdam": MyAdam, "warm": warm}
    checkpoint = sp.load(path, custom)
    assert checkpoint.optimizer is not None
    assert type(checkpoint.optimizer) is MyAdam and checkpoint.optimizer.lr == warm(1)
    assert checkpoint.model.layers[1].config() == {"by": 2.0, "shape": (1, 2)}
    assert sp.load(path, {"Scale": Scale}, optimizer=False).optimizer is None
    for name in custom:
        fewer = {n: c for n, c in custom.items() if n != name}
        with pytest.raises(ValueError, match=rf"{named(path)}: .*'{name}'; pass custom={{'{name}'"):
            sp.load(path, fewer)

    other = MyAdam(model.params, lr=warm)
    sp.load_into(path, model, optimizer=other)
    assert other.param_groups[0]["lr"] is warm and other.lr == warm(3)


KEYS = st.one_of(st.text(), st.integers(), st.floats(allow_nan=False), st.booleans(), st.none())
PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters())),
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.dictionaries(KEYS, inner),
        st.dictionaries(st.sampled_from(["__array__", "__float__", "__tuple__", "a", "a.b"]), inner),
    ),
    max_leaves=8,
)


@given(PLAIN)
def test_plain_data_comes_back_the_same(value: Any) -> None:
    tensors: dict[str, Any] = {}
    text = json.dumps(_storage._encoded(value, "value", tensors), allow_nan=False)
    assert bits(_storage._decoded(json.loads(text), tensors)) == bits(value) and not tensors


def test_odd_strings_come_back_the_same(path: Path) -> None:
    extra = {'"steepest":"{\\"sha256\\":\\"': ["\ud800", "\0", "\u2028é", '"\\'], "": ""}
    sp.save(path, new_model(), extra={**extra, '"steepest":"{\\"sha256\\":\\"x': np.zeros(2)})
    loaded = sp.load(path).extra
    loaded.popitem()
    assert bits(loaded) == bits(extra)


@pytest.mark.parametrize("dtype", [*"?bBhHiIlLqQefdF", ">f8", ">i2", "U3"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3)])
def test_arrays_come_back_the_same(path: Path, dtype: str, shape: Any) -> None:
    array = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    views = [array, array.T, array[..., ::2] if array.ndim else array]
    sp.save(path, new_model(), extra={"a": views, "a.0": np.float64(1.5), "b": np.int8(3), "n": np.str_("x")})
    extra = sp.load(path).extra
    for got, view in zip(extra["a"], views, strict=True):
        assert got.dtype == view.dtype.newbyteorder("=") and got.flags.writeable
        np.testing.assert_array_equal(got, view, strict=array.dtype.isnative)
    assert bits([extra["a.0"], extra["b"], extra["n"]]) == bits([1.5, 3, "x"])


def test_names_that_meet(path: Path) -> None:
    extra = {"a.b": np.zeros(1), "a": {"b": np.ones(1)}, "a.b_": np.full(1, 2.0)}
    sp.save(path, new_model(), extra=extra)
    assert bits(sp.load(path).extra) == bits(extra)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([1], "extra: expected a mapping, got list"),
        ({"f": {"g": [print]}}, r"extra\.f\.g\.0: expected plain data .* got <built-in"),
        ({"o": np.array([None])}, r"extra\.o: .* got dtype object; ?|extra\.o: .* got dtype object"),
        ({"c": np.zeros(1, complex)}, r"extra\.c: .* got dtype complex128"),
        ({"b": b"bytes"}, r"extra\.b: "),
        ({("a", 1j): 1}, r"extra: key"),
    ],
)
def test_extras_that_cannot_be_saved(path: Path, extra: Any, message: str) -> None:
    sp.save(path, new_model())
    before = path.read_bytes()
    with pytest.raises(TypeError, match=message):
        sp.save(path, new_model(), extra=extra)
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_other_arguments_that_are_refused(path: Path) -> None:
    model = new_model()
    with pytest.raises(TypeError, match=r"model: expected an nn\.Sequential, got dict"):
        sp.save(path, {})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="optimizer: expected one of steepest's, got str"):
        sp.save(path, model, optimizer="adam")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="its parameters are not this model's"):
        sp.save(path, model, optimizer=new_optimizer(new_model()))
    assert os.listdir(path.parent) == []
    with pytest.raises(FileNotFoundError):
        sp.load(path)
    sp.save(path, model)
    with pytest.raises(TypeError, match=r"model: expected an nn\.Sequential, got str"):
        sp.load_into(path, "model")  # type: ignore[arg-type]


# Callbacks


def callbacks(path: Path) -> list[Any]:
    return [
        ModelCheckpoint(path, extra={"note": "x"}),
        ReduceLROnPlateau("loss", patience=1, factor=0.5, cooldown=1, min_delta=0.02),
        EarlyStopping("val_loss", patience=3),
        ProgressBar(file=io.StringIO()),
    ]


def test_callbacks_go_on(path: Path) -> None:
    def run(epochs: int, path: Path, model: nn.Sequential | None = None) -> Trainer:
        model = model or new_model()
        optimizer = sp.Adam(model.param_groups(), lr=0.1)
        trainer = Trainer(model, sp.losses.softmax_cross_entropy, optimizer)
        hooks = callbacks(path)
        if path.exists():
            checkpoint = sp.load_into(path, model, optimizer=optimizer, callbacks=hooks)
            assert checkpoint.extra == {"note": "x"}
            trainer.history = checkpoint.history
        fit(trainer, epochs, initial_epoch=len(trainer.history.epoch), callbacks=hooks, validation_split=0.3)
        return trainer

    whole = run(30, path.with_name("whole"))
    assert 5 < len(whole.history.epoch) < 30, "the case is to be stopped early"
    assert len(set(whole.history.history["lr"])) > 1, "and to have its rate reduced"
    for epochs in range(1, 31):
        last = run(epochs, path)
    assert of(last) == of(whole)
    again = run(30, path)
    assert of(again) == of(whole), "resumed after the end, there is nothing to do"


def test_callbacks_that_do_not_match(path: Path) -> None:
    trainer = trained()
    before = of(trainer)
    stopping = EarlyStopping()
    saved(path, trainer, callbacks=[stopping, ProgressBar()])
    given = ReduceLROnPlateau()
    for wrong in ([given], [stopping, given], [EarlyStopping(), EarlyStopping()]):
        with pytest.raises(
            ValueError, match=rf"{named(path)}: callbacks: expected .* got the states of \['EarlyStopping'\]"
        ):
            sp.load_into(path, trainer.model, optimizer=trainer.optimizer, callbacks=wrong)
    assert of(trainer) == before
    sp.load(path, callbacks=[ProgressBar(), stopping])
    sp.load(path)
    forged(path, with_value([1, 2], "callbacks"))
    with pytest.raises(ValueError, match=f"{named(path)}: "):
        sp.load(path, callbacks=[stopping])


# Files that are refused


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    model = nn.Sequential([nn.Dense(1)], 1)
    optimizer = sp.SGD(model.params, momentum=0.5)
    for length in range(8):
        sp.save(path, model, optimizer=optimizer, extra={"a": [1.0], "fill": "x" * length})
        data = path.read_bytes()
        if data[8 : 8 + int.from_bytes(data[:8], "little")].endswith(b"  "):
            return data
    raise AssertionError("no header with padding")


def refused(path: Path) -> None:
    with pytest.raises(ValueError, match=named(path)):
        _storage.read(str(path))


def test_every_flip_of_a_byte_is_refused(small: bytes, path: Path) -> None:
    path.write_bytes(small)
    with path.open("r+b", buffering=0) as file:
        for at in range(len(small)):
            for flip in (0x01, 0x20, 0x80, 0x00):  # 0x20: the case of a letter; 0x00: as it was
                file.seek(at)
                file.write(bytes([small[at] ^ flip]))
                if flip:
                    refused(path)
    sp.load(path)


def test_every_truncation_and_extension_is_refused(small: bytes, path: Path) -> None:
    for data in (*(small[:size] for size in range(len(small))), small + b"\0", small + small, bytes(len(small))):
        path.write_bytes(data)
        refused(path)


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(Bomb()))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "an empty file"),
        (pickle.dumps(Bomb()), "a pickle"),
        (zipped(), "a zip archive"),
        (b"x" * 5, "cut short or of another kind"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "cut short or of another kind"),
        (struct.pack("<Q", 2**40) + b"{}", "cut short or of another kind"),
        (struct.pack("<Q", 2) + b"{}", "a safetensors file of another program"),
        (safetensors.numpy.save({"w": np.zeros(3)}), "a safetensors file of another program"),
        (safetensors.numpy.save({"w": np.zeros(3)}, {"steepest": "{}"}), "a safetensors file of another program"),
    ],
)
def test_foreign_files(path: Path, data: bytes, message: str) -> None:
    path.write_bytes(data)
    model = new_model()
    before = everything(model)
    for read in (sp.load, functools.partial(sp.load_into, model=model)):
        with pytest.raises(
            ValueError, match=rf"{named(path)}: expected a checkpoint that steepest\.save wrote, got .*{message}"
        ):
            read(path)
    assert everything(model) == before and not os.path.exists("exploded")


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{named(tmp_path)}: expected a file, got a folder"):
        sp.load(tmp_path)
    with pytest.raises(ValueError, match=f"{named(tmp_path)}: expected the name of a file"):
        sp.save(tmp_path, new_model())
    assert os.listdir(tmp_path) == []


def forged(path: Path, change: Any) -> Path:
    """A file with the right checksum, and wrong contents."""
    document = _storage.read(str(path))
    change(document)
    _storage.write(str(path), document)
    return path


def without(*keys: Any) -> Any:
    def change(document: Any) -> None:
        for key in keys[:-1]:
            document = document[key]
        del document[keys[-1]]

    return change


def with_value(value: Any, *keys: Any) -> Any:
    def change(document: Any) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        *map(without, ["architecture", "model", "optimizer", "history", "callbacks", "extra", "version"]),
        without("model", "0.weight"),
        without("architecture", "config", "layers", 0, "type"),
        without("architecture", "random_state", 0),
        without("optimizer", "type"),
        without("optimizer", "state", 0),
        without("optimizer", "state", 0, "exp_avg"),
        without("optimizer", "places", 0),
        with_value(np.zeros((6, 5), np.float32), "model", "0.weight"),
        with_value(np.zeros((5, 6), np.float64), "model", "0.weight"),
        with_value([0.0], "model", "3.bias"),
        with_value(np.zeros(1, np.float32), "model", "9.bias"),
        with_value("os.system", "architecture", "config", "layers", 0, "type"),
        with_value("he_normal", "architecture", "config", "layers", 0, "type"),
        with_value(0, "architecture", "config", "layers", 0, "units"),
        with_value(99, "architecture", "frozen"),
        with_value({"bit_generator": "MT19937"}, "architecture", "random_state", 3),
        with_value({"bit_generator": "PCG64"}, "architecture", "random_state", 3),
        with_value("Optimizer", "optimizer", "type"),
        with_value("SGD", "optimizer", "type"),
        with_value("Any", "optimizer", "type"),
        with_value({"schedule": "_count", "arguments": {}}, "optimizer", "rates", 0),
        with_value({"schedule": "cosine", "arguments": {}}, "optimizer", "rates", 0),
        with_value(-1.0, "optimizer", "rates", 0),
        with_value((30, (6, 6), "C"), "optimizer", "places", 0),
        with_value((-5, (5,), "C"), "optimizer", "places", 1),
        with_value((0, (42,), "C"), "optimizer", "places", 1),
        with_value(-1, "optimizer", "steps"),
        with_value(-1, "optimizer", "state", 0, "step"),
        with_value(np.zeros(42), "optimizer", "state", 0, "exp_avg"),
        with_value(np.zeros(1, np.float32), "optimizer", "state", 0, "exp_avg"),
        with_value(2.0, "optimizer", "param_groups", 0, "eps_"),
        with_value("sometimes", "optimizer", "nonfinite"),
        with_value("none", "history"),
        with_value(1, "history", "epoch"),
        with_value([], "history", "__class__"),
    ],
)
def test_contents_that_make_no_sense(path: Path, change: Any) -> None:
    trainer = trained()
    forged(saved(path, trainer), change)
    model = new_model()
    optimizer = new_optimizer(model)
    before = everything(model, optimizer)
    with pytest.raises(ValueError, match=f"^{named(path)}: .*[a-z]"):
        sp.load(path)
    try:
        sp.load_into(path, model, optimizer=optimizer)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ")
        assert everything(model, optimizer) == before


def test_a_file_of_a_later_format(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_storage, "FORMAT", 2)
    sp.save(path, new_model())
    monkeypatch.undo()
    with pytest.raises(ValueError, match=f"{named(path)}: written by a newer version of steepest; upgrade"):
        sp.load(path)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: new_model(units=7), r"model: 0\.weight: expected float32 \(5, 7\), got float32 \(5, 6\)"),
        (lambda: new_model(np.float64), r"model: 0\.weight: expected float64 \(5, 6\), got float32"),
        (lambda: nn.Sequential([nn.Dense(6)], 5), r"model: expected the layers \['Dense'\], got \['Dense', 'ReLU',"),
        (
            lambda: nn.Sequential([nn.Dense(6, bias=False), nn.ReLU(), nn.Dropout(0.3), nn.Dense(2)], 5),
            r"model: expected the parameters \['0\.weight', '3\.weight', '3\.bias'\], got",
        ),
        (
            lambda: nn.Sequential([nn.Dense(6), nn.Tanh(), nn.Dropout(0.3), nn.Dense(2)], 5),
            r"model: expected the layers \['Dense', 'Tanh', 'Dropout', 'Dense'\], got \['Dense', 'ReLU',",
        ),
    ],
)
def test_models_that_do_not_match(path: Path, model: Any, message: str) -> None:
    saved(path, trained())
    given = model()
    optimizer = new_optimizer(given)
    before = everything(given, optimizer)
    with pytest.raises(ValueError, match=f"{named(path)}: {message}"):
        sp.load_into(path, given, optimizer=optimizer)
    assert everything(given, optimizer) == before


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda model: sp.SGD(model.param_groups()), "expected the state of SGD, got Adam's"),
        (lambda model: sp.Adam(model.params), "param_groups: expected a sequence of 1|the state of 1 arrays, got 2"),
        (lambda model: sp.Adam(model.named_parameters()), "expected the state of 4 arrays, got 2"),
        (lambda model: sp.Adam(model.param_groups(), amsgrad=True), r"expected the keys .*max_exp_avg_sq"),
    ],
)
def test_optimizers_that_do_not_match(path: Path, optimizer: Any, message: str) -> None:
    saved(path, trained())
    model = new_model()
    given = optimizer(model)
    before = everything(model, given)
    with pytest.raises(ValueError, match=f"{named(path)}: .*({message})"):
        sp.load_into(path, model, optimizer=given)
    assert everything(model, given) == before


def test_options_are_those_of_the_file(path: Path) -> None:
    trainer = trained(options={"betas": (0.7, 0.8)})
    saved(path, trainer)
    model = new_model()
    optimizer = sp.Adam(model.param_groups(), lr=0.5, max_norm=2.0)
    sp.load_into(path, model, optimizer=optimizer)
    assert bits(optimizer.state_dict()) == bits(trainer.optimizer.state_dict())
    assert optimizer.param_groups[0]["betas"] == (0.7, 0.8) and optimizer.lr == trainer.optimizer.lr


def test_an_optimizer_that_was_not_saved(path: Path) -> None:
    sp.save(path, new_model())
    model = new_model(seed=5)
    before = everything(model)
    with pytest.raises(ValueError, match=f"{named(path)}: optimizer: .*saved without"):
        sp.load_into(path, model, optimizer=new_optimizer(model))
    assert everything(model) == before


def test_loading_runs_no_code(path: Path) -> None:
    saved(path, trained(), callbacks=[EarlyStopping()], extra={"mean": X.mean(0), "classes": np.array(["a", "b"])})
    script = f"""
    import sys
    import steepest as sp
    sp.load({str(path)!r})
    seen = []
    watched = ("exec", "compile", "import", "pickle.", "marshal.", "os.system", "subprocess.", "ctypes.dlopen")
    sys.addaudithook(lambda event, args: seen.append((event, args)) if event.startswith(watched) else None)
    checkpoint = sp.load({str(path)!r})
    sp.load_into({str(path)!r}, checkpoint.model, optimizer=checkpoint.optimizer)
    assert not seen, seen
    exec("pass")
    assert seen
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60)


# Writing


def fail(number: int) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("function", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("existing", [True, False])
def test_a_failure_leaves_what_was_there(
    path: Path, monkeypatch: pytest.MonkeyPatch, function: str, existing: bool
) -> None:
    model = new_model()
    if existing:
        sp.save(path, model)
    before = {name.name: name.read_bytes() for name in path.parent.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail(28))
        with pytest.raises(OSError, match="No space left") as caught:
            sp.save(path, new_model(seed=4))
    assert (caught.value.errno, caught.value.filename, caught.value.filename2) == (28, str(path), None)
    assert {name.name: name.read_bytes() for name in path.parent.iterdir()} == before


def test_ctrl_c_leaves_what_was_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any) -> Any:
        raise KeyboardInterrupt

    sp.save(path, new_model())
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            sp.save(path, new_model(seed=4))
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_short_writes_are_completed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
        sp.save(path, new_model())
    sp.load(path)


@POSIX
def test_a_limit_on_file_sizes(path: Path) -> None:
    """The kernel itself cuts the write short."""
    script = f"""
    import os, resource
    import steepest as sp
    from steepest import nn
    sp.save({str(path)!r}, nn.Sequential([nn.Dense(1)], 1))
    before = open({str(path)!r}, "rb").read()
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        sp.save({str(path)!r}, nn.Sequential([nn.Dense(100)], 100))
        raise SystemExit("no error")
    except OSError as error:
        assert error.filename == {str(path)!r}, error
    assert open({str(path)!r}, "rb").read() == before
    assert os.listdir({str(path.parent)!r}) == [{path.name!r}]
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "none" / "model.safetensors"
    with pytest.raises(FileNotFoundError) as caught:
        sp.save(path, new_model())
    assert caught.value.filename == str(path)


def test_long_names_and_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "n" * 243 + ".safetensors"
    sp.save(name, new_model())
    sp.load(name)


@POSIX
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_as_those_of_open(path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        sp.save(path, new_model())
        path.with_name("opened").write_bytes(b"")
    finally:
        os.umask(before)
    assert path.stat().st_mode == path.with_name("opened").stat().st_mode
    path.chmod(0o640)
    sp.save(path, new_model())
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@POSIX
def test_a_file_that_may_not_be_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sp.save(path, new_model())
    path.chmod(0o444)
    monkeypatch.setattr(os, "access", lambda *args: False)  # root may write anything
    with pytest.raises(PermissionError) as caught:
        sp.save(path, new_model())
    assert caught.value.filename == str(path)


@POSIX
@pytest.mark.parametrize("dangling", [True, False])
def test_links_are_followed(path: Path, dangling: bool) -> None:
    folder = path.parent / "elsewhere"
    folder.mkdir()
    if not dangling:
        sp.save(folder / "target", new_model())
    path.symlink_to(folder / "target")
    sp.save(path, new_model(seed=4))
    assert path.is_symlink() and os.listdir(folder) == ["target"]
    np.testing.assert_array_equal(sp.load(folder / "target").model.params, new_model(seed=4).params)


@POSIX
def test_devices_stay(tmp_path: Path) -> None:
    for use in (functools.partial(sp.save, model=new_model()), sp.load):
        with pytest.raises(ValueError, match="/dev/null: expected"):
            use("/dev/null")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for use in (functools.partial(sp.save, model=new_model()), sp.load):
        with pytest.raises(ValueError, match="fifo: expected"):
            use(fifo)
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def test_the_order_of_what_is_done(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def noted(name: str) -> Any:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            done.append(name)
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("write", "fsync", "close", "replace"):
            patch.setattr(os, name, noted(name))
        sp.save(path, new_model())
    folder = ["fsync", "close"] if os.name == "posix" else []
    assert done == ["write"] * done.count("write") + ["fsync", "close", "replace", *folder]


def test_metadata_is_json_that_others_can_read(path: Path) -> None:
    saved(path, trained())
    with safetensors.safe_open(path, "np") as file:
        entry = json.loads(file.metadata()["steepest"])
    assert entry["architecture"]["config"]["layers"][0] == {"type": "Dense", "units": 6, "bias": True, "init": None}


def test_what_is_not_finite(path: Path) -> None:
    model = new_model()
    model.params[:3] = [math.nan, math.inf, -0.0]
    history = History()
    history.append(0, {"loss": math.nan, "val_loss": math.inf})
    history.append(1, {"loss": -math.inf})
    sp.save(path, model, history=history)
    checkpoint = sp.load(path)
    assert everything(checkpoint.model, None, checkpoint.history) == everything(model, None, history)


# Killed and resumed

KILLS = Path(__file__).with_name("kill_and_resume.py")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
@pytest.mark.parametrize(("how", "least"), [("moments", 30), ("calls", 40)])
def test_killed_and_resumed_is_as_never_killed(tmp_path: Path, how: str, least: int) -> None:
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(KILLS), how, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) >= least, done.stdout
