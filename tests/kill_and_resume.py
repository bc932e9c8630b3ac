"""Trains, kills the training with SIGKILL, resumes it, and compares with a training never killed.

    python kill_and_resume.py moments|calls FOLDER

Checkpoints of the same state have the same bytes, so after every kill the file must be, byte for byte,
one of those that the uninterrupted training wrote; and the last one its last one. "moments" kills
at random moments; "calls" around every system call of a save, and in the middle of every write.
Prints how many trainings were killed.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import steepest as sp
from steepest import nn, schedules
from steepest.callbacks import ModelCheckpoint
from steepest.train import Trainer
from test_checkpoint import VARIANTS

X = np.random.default_rng(0).normal(size=(300, 20)).astype(np.float32)
Y = (X[:, 0] * X[:, 1] > 0).astype(int)
KILLS = 4


def train(path: Path, kind: str, options: dict[str, Any], epochs: int, pattern: str = "") -> None:
    """As a user would write it: one program that starts anew or goes on."""
    layers = [nn.Dense(32), nn.ReLU(), nn.Dropout(0.3), nn.Dense(2)]
    model = nn.Sequential(layers, input_shape=20, seed=1)
    rate = schedules.cosine(0.02, steps=epochs * 10, warmup=5)
    optimizer = getattr(sp, kind)(model.param_groups(), lr=rate, **options)
    trainer = Trainer(model, sp.losses.softmax_cross_entropy, optimizer)
    callbacks = [ModelCheckpoint(pattern or path)]
    start = 0
    if path.exists():
        saved = sp.load_into(path, model, optimizer=optimizer, callbacks=callbacks)
        trainer.history, start = saved.history, saved.epoch
    trainer.fit(
        X,
        Y,
        epochs=epochs,
        initial_epoch=start,
        seed=5,
        validation_split=0.1,
        callbacks=callbacks,
        verbose=False,
    )


def killed(body: Callable[[], None], after: float | None = None) -> bool:
    """Runs it in a child; whether it was killed, by us after so many seconds or by itself."""
    child = os.fork()
    if child == 0:
        try:
            body()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), f"the training failed: {status}"
    return status != 0


class Case:
    """One optimizer's uninterrupted training, and the file of another that is to equal it."""

    def __init__(self, folder: Path, number: int, epochs: int) -> None:
        self.kind, self.options = VARIANTS[number]
        self.epochs, self.path = epochs, folder / f"{number}.safetensors"
        pattern = str(folder / f"whole-{number}-{{epoch}}")
        start = time.monotonic()
        assert not killed(lambda: train(folder / "none", self.kind, self.options, epochs, pattern))
        self.seconds = time.monotonic() - start
        self.whole = [Path(pattern.format(epoch=epoch + 1)).read_bytes() for epoch in range(epochs)]

    def killed(self, after: float | None = None, before: Callable[[], None] = lambda: None) -> bool:
        def body() -> None:
            before()
            train(self.path, self.kind, self.options, self.epochs)

        if not killed(body, after):
            return False
        if self.path.exists():
            assert self.path.read_bytes() in self.whole, f"{self.kind}: a file that was never saved"
            sp.load(self.path)
        return True

    def finish(self) -> None:
        assert not self.killed()
        assert self.path.read_bytes() == self.whole[-1], f"{self.kind} {self.options}: other bits"


def moments(folder: Path) -> int:
    rng = random.Random()
    kills = 0
    for number in range(len(VARIANTS)):
        case = Case(folder, number, epochs=10)
        kills += sum(case.killed(rng.uniform(0, case.seconds / 3)) for _ in range(KILLS))
        case.finish()
    return kills


def calls(folder: Path) -> int:
    """Every way to die in the second save of a training."""
    kills = 0
    for variant in (0, 9):
        case = Case(folder, variant, epochs=3)
        for kind in ("before", "amid", "after"):
            for call in itertools.count():
                case.path.unlink(missing_ok=True)
                if not case.killed(before=lambda kind=kind, call=call: die_in(kind, call)):  # type: ignore[misc]
                    break
                assert case.path.read_bytes() in case.whole[:2]
                case.finish()
                kills += 1
    return kills


def die_in(kind: str, number: int) -> None:
    """Has the process kill itself at that system call of the second save."""
    made: Iterator[int] = itertools.count()
    saves = 0
    real_save = sp.save

    def save(*args: Any, **options: Any) -> None:
        nonlocal saves
        saves += 1
        real_save(*args, **options)

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            counts = saves == 2 and (kind != "amid" or real is write)
            now = counts and next(made) == number
            if now and kind == "amid":
                write(args[0], args[1][: len(args[1]) // 2])
            if not now or kind == "after":
                result = real(*args, **options)
            if now:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    write = os.write
    sp.save = save
    for name in ("open", "write", "fsync", "close", "replace"):
        setattr(os, name, wrapped(getattr(os, name)))


if __name__ == "__main__":
    print({"moments": moments, "calls": calls}[sys.argv[1]](Path(sys.argv[2])), "killed")
