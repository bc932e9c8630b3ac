"""Callbacks: when they are called, and what each of ours does."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
import struct
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import steepest as sp
from steepest import nn
from steepest.callbacks import (
    Callback,
    CSVLogger,
    EarlyStopping,
    History,
    ModelCheckpoint,
    ProgressBar,
    ReduceLROnPlateau,
)
from steepest.train import Trainer

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)


def trainer(lr: Any = 0.01) -> Any:
    model = nn.Sequential([nn.Dense(2)], 3)
    return Trainer(model, sp.losses.softmax_cross_entropy, sp.SGD(model.param_groups(), lr=lr))


class Scripted(Callback):
    """Makes an epoch's validation loss what the script says."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def on_epoch_end(self, epoch: Any, logs: Any) -> None:
        logs["val_loss"] = self.values[epoch]


def run(*callbacks: Any, t: Any = None, epochs: int = 6, **arguments: Any) -> Any:
    t = t or trainer()
    t.fit(X, Y, epochs=epochs, callbacks=callbacks, verbose=False, **arguments)
    return t


def test_hooks_and_their_order() -> None:
    calls: list[Any] = []

    class Recorder(Callback):
        def on_train_begin(self, logs: Any) -> None:
            calls.append(("train begin", self.params))

        def on_epoch_begin(self, epoch: Any, logs: Any) -> None:
            calls.append(("epoch begin", epoch))

        def on_train_batch_begin(self, batch: Any, logs: Any) -> None:
            calls.append(("batch begin", batch))

        def on_train_batch_end(self, batch: Any, logs: Any) -> None:
            calls.append(("batch end", list(logs)))

        def on_epoch_end(self, epoch: Any, logs: Any) -> None:
            calls.append(("epoch end", list(logs)))

        def on_train_end(self, logs: Any) -> None:
            calls.append(("train end", self.trainer.history.epoch))

    run(Recorder(), epochs=1, validation_split=0.1)
    assert calls == [
        ("train begin", {"epochs": 1, "steps": 2}),
        ("epoch begin", 0),
        ("batch begin", 0),
        ("batch end", ["loss"]),
        ("batch begin", 1),
        ("batch end", ["loss"]),
        ("epoch end", ["loss", "lr", "val_loss"]),
        ("train end", [0]),
    ]


def test_hooks_have_keras_names_and_one_method_is_enough() -> None:
    seen = []

    class Mine(Callback):
        def on_epoch_end(self, epoch: Any, logs: Any) -> None:
            seen.append((epoch, logs["loss"]))

    t = run(Mine(), epochs=2)
    assert seen == list(zip([0, 1], t.history.history["loss"], strict=True))


def test_early_stopping_restores_the_best() -> None:
    kept = []

    class Keep(Callback):
        def on_epoch_end(self, epoch: Any, logs: Any) -> None:
            kept.append(self.trainer.model.params.copy())

    stopping = EarlyStopping(patience=2)
    t = run(Scripted(3.0, 2.0, 2.5, 2.0, 1.0, 0.0), Keep(), stopping)
    assert t.history.epoch == [0, 1, 2, 3]
    assert (stopping.best, stopping.best_epoch, stopping.stopped_epoch) == (2.0, 1, 3)
    np.testing.assert_array_equal(t.model.params, kept[1])

    kept.clear()
    t = run(Scripted(3.0, 2.0, 1.0, 2.0), Keep(), stopping, epochs=4)
    assert (stopping.best_epoch, stopping.stopped_epoch) == (2, None)
    np.testing.assert_array_equal(t.model.params, kept[2])

    kept.clear()
    t = run(Scripted(1.0, 2.0), Keep(), EarlyStopping(restore_best=False), epochs=2)
    np.testing.assert_array_equal(t.model.params, kept[1])


@pytest.mark.parametrize(
    ("monitor", "mode", "rises"),
    [
        ("val_loss", "auto", False),
        ("val_accuracy", "auto", True),
        ("val_acc", "auto", True),
        ("f1", "auto", True),
        ("my_score", "auto", True),
        ("mse", "auto", False),
        ("val_loss", "max", True),
        ("accuracy", "min", False),
    ],
)
def test_direction_of_improvement(monitor: Any, mode: Any, rises: Any) -> None:
    stopping = EarlyStopping(monitor, mode=mode)
    assert [stopping.improved({monitor: v}) for v in (1.0, 2.0, 0.5)] == [True, rises, not rises]


def test_min_delta_and_nan_are_no_improvement() -> None:
    stopping = EarlyStopping(min_delta=0.1)
    values = (1.0, 0.95, float("nan"), 0.85)
    assert [stopping.improved({"val_loss": v}) for v in values] == [True, False, False, True]


def test_reduce_on_plateau() -> None:
    t = trainer(lr=1.0)
    plateau = ReduceLROnPlateau(factor=0.5, patience=2, min_lr=0.2)
    run(Scripted(*[1.0] * 9), plateau, t=t, epochs=9)
    rates = [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2]
    assert t.history.history["lr"] == pytest.approx(rates)
    assert t.optimizer.lr == pytest.approx(0.2)


def test_reduce_on_plateau_cools_down_and_waits_for_improvement() -> None:
    t = trainer(lr=1.0)
    run(
        Scripted(1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5),
        ReduceLROnPlateau(factor=0.1, patience=1, cooldown=2),
        t=t,
        epochs=7,
    )
    assert t.history.history["lr"] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.01])


def test_reduce_on_plateau_equals_keras() -> None:
    keras: Any = pytest.importorskip("keras")
    values = (np.random.default_rng(0).integers(0, 30, 60) / 10).tolist()
    for mode, patience, cooldown, min_lr in product(("min", "max"), (1, 2, 3), (0, 1, 2, 4), (0.0, 0.2)):
        options: Any = {"mode": mode, "patience": patience, "cooldown": cooldown, "min_lr": min_lr}
        ours = ReduceLROnPlateau(factor=0.5, min_delta=0.1, **options)
        theirs = keras.callbacks.ReduceLROnPlateau(factor=0.5, min_delta=0.1, **options)
        t, optimizer = trainer(lr=1.0), SimpleNamespace(learning_rate=1.0)
        ours.trainer = t
        theirs.set_model(SimpleNamespace(optimizer=optimizer))
        for epoch, value in enumerate(values):
            if epoch == 40:
                t.optimizer.lr = optimizer.learning_rate = 1.0
            ours.on_epoch_end(epoch, {"val_loss": value})
            theirs.on_epoch_end(epoch, {"val_loss": value})
            assert t.optimizer.lr == optimizer.learning_rate, (options, epoch)


def test_reduce_on_plateau_refuses_a_schedule() -> None:
    t = trainer(lr=sp.schedules.constant(0.1))
    with pytest.raises(TypeError, match=r"lr is a schedule.*give it a number"):
        run(ReduceLROnPlateau(), t=t)
    assert t.history.epoch == []


@pytest.mark.parametrize("path", ["{}.safetensors", "{0}.safetensors", "{loss.safetensors"])
def test_a_path_without_names_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="path: expected names of quantities in braces, got"):
        ModelCheckpoint(path)


def test_what_cannot_begin_leaves_the_others_alone(tmp_path: Any) -> None:
    """Their files, what they were told to go on from, and the parameters."""
    t, log = trainer(), tmp_path / "log.csv"
    stopping = EarlyStopping("loss", patience=50)
    run(CSVLogger(log), stopping, t=t)
    stopping.set_state({**stopping.get_state(), "best": -1.0, "_best_params": np.zeros_like(t.model.params)})
    before, text, history = t.model.params.copy(), log.read_text(), t.history
    with pytest.raises(FileNotFoundError, match="expected a folder that exists"):
        run(CSVLogger(log), stopping, ModelCheckpoint("/no/such/folder/m.safetensors"), t=t)
    assert np.array_equal(t.model.params, before) and log.read_text() == text and t.history is history
    run(stopping, t=t)
    assert stopping.best == -1.0 and not t.model.params.any()


def test_an_unrecorded_quantity() -> None:
    with pytest.raises(ValueError, match=r"no 'val_loss' in the logs.*fit with validation data"):
        run(EarlyStopping())


@pytest.mark.parametrize(
    "make",
    [
        lambda: EarlyStopping(patience=0),
        lambda: EarlyStopping(mode="up"),  # type: ignore[arg-type]
        lambda: EarlyStopping(min_delta=-1),
        lambda: ReduceLROnPlateau(factor=1),
        lambda: ReduceLROnPlateau(patience=0),
        lambda: ReduceLROnPlateau(min_lr=-1),
        lambda: ModelCheckpoint("x", every=0),
    ],
)
def test_refused_arguments(make: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        make()


def test_model_checkpoint(monkeypatch: Any) -> None:
    saved = []

    def save(path: Any, model: Any, **rest: Any) -> None:
        saved.append((path, rest["history"].epoch[-1]))

    monkeypatch.setattr(sp, "save", save, raising=False)
    run(Scripted(3.0, 1.0, 2.0, 0.5), ModelCheckpoint("m-{epoch:02d}-{val_loss:.1f}"), epochs=4)
    assert saved == [("m-01-3.0", 0), ("m-02-1.0", 1), ("m-03-2.0", 2), ("m-04-0.5", 3)]
    saved.clear()
    run(Scripted(3.0, 1.0, 2.0, 0.5), ModelCheckpoint("best", save_best_only=True), epochs=4)
    assert saved == [("best", 0), ("best", 1), ("best", 3)]
    saved.clear()
    run(ModelCheckpoint("every", every=2), epochs=5)
    assert saved == [("every", 1), ("every", 3)]


def test_model_checkpoint_of_an_unrecorded_quantity_and_in_bytes(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"path: no 'val_loss' in the logs.*fit with validation data"):
        run(ModelCheckpoint(tmp_path / "{epoch}-{val_loss:.3f}"))
    with pytest.raises(ValueError, match=r"path: no 'f2' in the logs, which have loss, lr$"):
        run(ModelCheckpoint(tmp_path / "{f2}"))
    run(ModelCheckpoint(bytes(tmp_path / "{epoch}.safetensors")), epochs=1)
    assert (tmp_path / "1.safetensors").exists()
    losses = Ends()
    with pytest.raises(FileNotFoundError, match=r"expected a folder that exists for the path: '.*none.x'"):
        run(losses, ModelCheckpoint(tmp_path / "none" / "x"))
    assert losses.trainer.history.epoch == []  # before anything was trained


class Ends(Callback):
    """Counts how often it was ended, and may fail."""

    def __init__(self, begin: Any = None, end: Any = None) -> None:
        self.errors, self.ended = (begin, end), 0

    def on_train_begin(self, logs: Any) -> None:
        if self.errors[0]:
            raise self.errors[0]

    def on_train_end(self, logs: Any) -> None:
        self.ended += 1
        if self.errors[1]:
            raise self.errors[1]


@pytest.mark.parametrize("error", [ValueError("first"), KeyboardInterrupt("first")])
def test_training_ends_for_all_callbacks_that_had_begun(error: Any) -> None:
    callbacks = Ends(), Ends(end=error), Ends(end=ValueError("second")), Ends()
    with pytest.raises(type(error), match="first"):
        run(*callbacks, epochs=1)
    assert [c.ended for c in callbacks] == [1, 1, 1, 1]
    callbacks = Ends(), Ends(), Ends(begin=error), Ends()
    with pytest.raises(type(error), match="first"):
        run(*callbacks, epochs=1)
    assert [c.ended for c in callbacks] == [1, 1, 0, 0]


def rows(path: Any) -> Any:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_csv_logger(tmp_path: Any) -> None:
    path = tmp_path / "run.csv"
    t = run(CSVLogger(path), epochs=3)
    assert [row["epoch"] for row in rows(path)] == ["1", "2", "3"]
    assert [float(row["loss"]) for row in rows(path)] == t.history.history["loss"]
    run(CSVLogger(path), t=t, epochs=2)
    assert len(rows(path)) == 2
    run(CSVLogger(path, append=True), t=t, epochs=4, initial_epoch=2)
    assert [row["epoch"] for row in rows(path)] == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("epoch,loss\n1,0.5", ["epoch,loss", "1,0.5", "2,"]),
        ("epoch,loss\r\n1,0.5\r\n", ["epoch,loss", "1,0.5", "2,"]),
        ("\nepoch,lr\n", ["", "epoch,lr", "2,0.01"]),
        ("\n", ["", "epoch,loss,lr", "2,"]),
        ("", ["epoch,loss,lr", "2,"]),
    ],
)
def test_csv_logger_continues_what_is_there(tmp_path: Any, before: str, after: list[str]) -> None:
    path = tmp_path / "run.csv"
    path.write_bytes(before.encode())
    run(CSVLogger(path, append=True), epochs=2, initial_epoch=1)
    lines = path.read_text().splitlines()
    assert lines[:-1] == after[:-1] and lines[-1].startswith(after[-1])


def test_plain_progress() -> None:
    file = io.StringIO()
    run(ProgressBar(file=file), epochs=10)
    lines = file.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("epoch  1/10  loss ")


def test_progress_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> Any:
            return True

    file = Terminal()
    run(ProgressBar(file=file), epochs=2)
    *_, bar, line = file.getvalue().split("\r")
    assert "epoch 2/2:   0%" in file.getvalue() and not bar.strip()
    assert re.fullmatch(r"epoch 2/2  loss \S+  lr 0.01\n", line)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX terminals")
@pytest.mark.parametrize("columns", [0, 30])
def test_progress_on_terminals_without_a_size_and_narrow_ones(columns: int) -> None:
    import fcntl
    import termios

    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", columns and 24, columns, 0, 0))
    bar = "from steepest.callbacks import progress_bar as bar; b = bar(total=3, desc='bar'); b.update(2); b.close()"
    train = "from steepest.cli import main; main(['train', '--epochs', '1', '--hidden', '8'])"
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    done = subprocess.run(
        [sys.executable, "-c", f"{bar}; {train}"], stdout=theirs, stderr=theirs, env=environment, timeout=120
    )
    os.close(theirs)
    text = ""
    with contextlib.suppress(OSError):  # Linux' end of it
        while part := os.read(ours, 4096):
            text += part.decode()
    os.close(ours)
    assert done.returncode == 0 and "bar:  67%" in text and "2/3" in text
    assert re.search(r"\repoch 1/1  loss \S+  accuracy \S+  lr 0.003  val_loss \S+  val_accuracy 0\.\d+\r\n", text)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux' full disk")
def test_the_log_on_a_full_disk_is_named() -> None:
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        run(CSVLogger(Path("/dev/full")))


def test_verbose_prints_and_quiet_does_not(capsys: Any) -> None:
    trainer().fit(X, Y)
    assert "epoch 1/1  loss" in capsys.readouterr().out
    run()
    assert capsys.readouterr() == ("", "")


def test_history() -> None:
    history = History()
    history.append(0, {"loss": 1.0})
    history.append(1, {"loss": 0.5, "val_loss": 0.7})
    assert history.history["loss"] == [1.0, 0.5]
    np.testing.assert_array_equal(history.history["val_loss"], [np.nan, 0.7])
    assert history.before(1).history == {
        "loss": [1.0],
        "val_loss": [pytest.approx(np.nan, nan_ok=True)],
    }
    assert repr(history) == "History(epochs=2, quantities=['loss', 'val_loss'])"


def test_plots() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    t = run(Scripted(*[1.0] * 6))
    assert len(t.history.plot().lines) == 1
    assert [line.get_label() for line in t.history.plot("lr").lines] == ["lr"]
    assert t.find_lr(X, Y).plot().get_xlabel() == "learning rate"


def test_plots_without_matplotlib(monkeypatch: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install .steepest\[plot\]."):
        History().plot()
