"""What hooks into training: early stopping, checkpoints, logs, progress.

Hook names and arguments are Keras'; epochs and batches count from 0.

>>> from steepest.callbacks import Callback
>>> class PrintLoss(Callback):
...     def on_epoch_end(self, epoch, logs):
...         print(epoch, logs["loss"])
"""

from __future__ import annotations

import csv
import errno
import io
import math
import os
import string
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TextIO

import numpy as np

from steepest import _storage
from steepest._history import History

if TYPE_CHECKING:
    from steepest.nn.layer import Array
    from steepest.train import Trainer

__all__ = [
    "CSVLogger",
    "Callback",
    "EarlyStopping",
    "History",
    "ModelCheckpoint",
    "ProgressBar",
    "ReduceLROnPlateau",
]

Logs = dict[str, float]
Mode = Literal["auto", "min", "max"]
RISING = ("acc", "accuracy", "precision", "recall", "f1", "average_precision", "r2", "score", "auc")


class Callback:
    """Hooks that do nothing; a subclass overrides those that it needs.

    `self.trainer` is the `Trainer` (with `.model`, `.optimizer`, `.history` and `.stop_training`,
    which ends training when set), `self.params` has "epochs" and "steps": batches per epoch, None
    if unknown. `logs` of an epoch: loss, metrics, lr, and what validation gave, as "val_...".
    """

    trainer: Trainer
    params: dict[str, Any]

    def _check(self) -> None:
        """Refuses what cannot begin: called of all callbacks before any `on_train_begin`, it changes nothing."""

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, so that a resumed training goes on the same: plain data, arrays."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes over what `get_state` gave; the training that begins next goes on from there."""

    def on_train_begin(self, logs: Logs) -> None:
        """Before the first epoch."""

    def on_train_end(self, logs: Logs) -> None:
        """After the last epoch, also when an error or Ctrl-C ended it, or a later callback could not begin."""

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Before an epoch."""

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """After an epoch and its validation."""

    def on_train_batch_begin(self, batch: int, logs: Logs) -> None:
        """Before a batch."""

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """After a batch; `logs` has its loss."""


class Hooks:
    """The hooks that a list of callbacks overrides, ready to be called by name."""

    NAMES = tuple(name for name in vars(Callback) if name.startswith("on_"))

    def __init__(self, callbacks: Iterable[Callback], trainer: Trainer, **params: Any) -> None:
        # A checkpoint is of what the epoch left behind, the other callbacks' states included.
        self.callbacks = sorted(callbacks, key=lambda callback: isinstance(callback, ModelCheckpoint))
        for callback in self.callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(f"callbacks: expected instances of Callback, got {callback!r}")
            callback.trainer, callback.params = trainer, params
        self.by_name: dict[str, list[Callable[..., None]]] = {
            name: [getattr(c, name) for c in self.callbacks if _overrides(c, name)] for name in self.NAMES
        }

    def call(self, name: str, *args: Any) -> None:
        """Calls every callback's hook of that name."""
        for hook in self.by_name[name]:
            hook(*args)

    def check(self) -> None:
        """Refuses callbacks that cannot begin."""
        for callback in self.callbacks:
            callback._check()

    def begin(self) -> None:
        """`on_train_begin` of all; where one fails, those that had begun are ended."""
        for n, callback in enumerate(self.callbacks):
            try:
                callback.on_train_begin({})
            except BaseException:
                self._end(self.callbacks[:n])
                raise

    def end(self) -> None:
        """`on_train_end` of all, then the first error."""
        self._end(self.callbacks)

    @staticmethod
    def _end(callbacks: Iterable[Callback]) -> None:
        first = None
        for callback in callbacks:
            try:
                callback.on_train_end({})
            except BaseException as error:
                first = first or error
        if first is not None:
            raise first


def _overrides(callback: Callback, name: str) -> bool:
    return getattr(type(callback), name) is not getattr(Callback, name)


class _Monitor(Callback):
    """Watches one quantity for improvements of more than `min_delta`."""

    _state: tuple[str, ...] = ("best",)
    _resumed = False

    def __init__(self, monitor: str, mode: Mode, min_delta: float) -> None:
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"mode: expected 'auto', 'min' or 'max', got {mode!r}")
        if not min_delta >= 0:
            raise ValueError(f"min_delta: expected a number >= 0, got {min_delta!r}")
        self.monitor, self.mode, self.min_delta = monitor, mode, min_delta
        rising = monitor.endswith(RISING) if mode == "auto" else mode == "max"
        self._sign = -1.0 if rising else 1.0
        self.reset()

    def reset(self) -> None:
        """Forgets the best value."""
        self.best = self._sign * math.inf

    def get_state(self) -> dict[str, Any]:
        """What it remembers."""
        return {name: getattr(self, name) for name in self._state}

    def set_state(self, state: dict[str, Any]) -> None:
        """Remembers that, also when training begins."""
        for name in self._state:
            setattr(self, name, state[name])
        self._resumed = True

    def on_train_begin(self, logs: Logs) -> None:
        """Starts anew, or goes on from the state that was set."""
        if not self._resumed:
            self.reset()
        self._resumed = False

    def improved(self, logs: Logs) -> bool:
        """Whether `logs` has the best value yet, which is then remembered."""
        if self.monitor not in logs:
            raise _unrecorded("monitor", self.monitor, logs)
        value = logs[self.monitor]
        if not self._sign * value + self.min_delta < self._sign * self.best:  # rounds as Keras does
            return False
        self.best = value
        return True


def _unrecorded(argument: str, name: object, logs: Logs) -> ValueError:
    advice = "; fit with validation data" if str(name).startswith("val_") else ""
    return ValueError(f"{argument}: no {name!r} in the logs, which have {', '.join(logs)}{advice}")


class EarlyStopping(_Monitor):
    """Ends training when a quantity has not improved for `patience` epochs.

    An improvement is one of more than `min_delta`. `mode` "auto" is "max" for accuracies and other
    scores, else "min". At the end the parameters of the best epoch are restored, however training
    ended, unless `restore_best` is False. `best`, `best_epoch` and `stopped_epoch` (None if it went
    to the end) tell what happened. ValueError where `monitor` is not recorded.
    """

    _state = ("best", "best_epoch", "stopped_epoch", "_waited", "_best_params")

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        patience: int = 5,
        min_delta: float = 0.0,
        mode: Mode = "auto",
        restore_best: bool = True,
    ) -> None:
        if patience < 1:
            raise ValueError(f"patience: expected at least 1 epoch, got {patience!r}")
        self.patience, self.restore_best = patience, restore_best
        super().__init__(monitor, mode, min_delta)

    def reset(self) -> None:
        """Forgets everything."""
        super().reset()
        self.best_epoch: int | None = None
        self.stopped_epoch: int | None = None
        self._waited = 0
        self._best_params: Array | None = None

    def on_train_begin(self, logs: Logs) -> None:
        """Starts anew, or goes on from the state that was set; that may be the end."""
        super().on_train_begin(logs)
        if self.stopped_epoch is not None:
            self.trainer.stop_training = True

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Compares the epoch with the best."""
        self._waited += 1
        if self.improved(logs):
            self.best_epoch, self._waited = epoch, 0
            if self.restore_best:
                self._best_params = self.trainer.model.params.copy()
        elif self._waited >= self.patience:
            self.stopped_epoch = epoch
            self.trainer.stop_training = True

    def on_train_end(self, logs: Logs) -> None:
        """Restores the best parameters."""
        if self._best_params is not None:
            np.copyto(self.trainer.model.params, self._best_params)
            self._best_params = None


class ReduceLROnPlateau(_Monitor):
    """Multiplies the learning rate by `factor` when a quantity has not improved for a while.

    That is after `patience` epochs without an improvement of more than `min_delta`, and then again
    after as many more; of the `cooldown` epochs that follow a reduction only the last one counts.
    Never below `min_lr`. Keras' rule. TypeError if the optimizer's rate is a schedule; ValueError where
    `monitor` is not recorded.
    """

    _state = ("best", "_waited", "_cooling")

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        factor: float = 0.1,
        patience: int = 10,
        min_delta: float = 1e-4,
        mode: Mode = "auto",
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        if not 0 < factor < 1:
            raise ValueError(f"factor: expected 0 < factor < 1, got {factor!r}")
        if patience < 1 or cooldown < 0 or not min_lr >= 0:
            raise ValueError(
                f"expected patience >= 1, cooldown >= 0 and min_lr >= 0, got {patience!r}, {cooldown!r} and {min_lr!r}"
            )
        self.factor, self.patience, self.cooldown, self.min_lr = factor, patience, cooldown, min_lr
        super().__init__(monitor, mode, min_delta)

    def reset(self) -> None:
        """Forgets everything."""
        super().reset()
        self._waited = self._cooling = 0

    def _check(self) -> None:
        if self.trainer.optimizer is None:
            raise TypeError("ReduceLROnPlateau: expected an optimizer with a learning rate, got solver='lbfgs'")
        for group in self.trainer.optimizer.param_groups:
            if callable(group["lr"]):
                raise TypeError(
                    f"ReduceLROnPlateau: the optimizer's lr is a schedule, {group['lr']!r}, which "
                    "would undo every reduction at the next step; give it a number as lr"
                )

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Compares the epoch with the best."""
        self._cooling = max(self._cooling - 1, 0)
        if self.improved(logs) or self._cooling:
            self._waited = 0
            return
        self._waited += 1
        higher = [group for group in self.trainer.optimizer.param_groups if group["lr"] > self.min_lr]
        if self._waited >= self.patience and higher:
            self._waited, self._cooling = 0, self.cooldown
            for group in higher:
                group["lr"] = max(group["lr"] * self.factor, self.min_lr)


class ModelCheckpoint(_Monitor):
    """Saves model, optimizer, history and callbacks after every `every` epochs with `steepest.save`.

    `path` may name quantities: "{epoch:03d}-{val_loss:.4f}.safetensors", epochs counted from 1.
    `save_best_only`: only when `monitor` has improved. `extra` goes along. It is called after all
    other callbacks, so that training can go on from the file with the same bits. FileNotFoundError without
    the folder; ValueError where a quantity is not recorded.
    """

    def __init__(
        self,
        path: str | bytes | os.PathLike[Any],
        *,
        monitor: str = "val_loss",
        save_best_only: bool = False,
        mode: Mode = "auto",
        every: int = 1,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every: expected at least 1 epoch, got {every!r}")
        self.path, self.save_best_only, self.every, self.extra = os.fsdecode(path), save_best_only, every, extra
        try:
            names = [name for _, name, *_ in string.Formatter().parse(self.path) if name is not None]
        except ValueError as error:
            raise ValueError(f"path: expected names of quantities in braces, got {self.path!r}: {error}") from None
        if any(not name or name.isdigit() for name in names):
            raise ValueError(f"path: expected names of quantities in braces, got {self.path!r}")
        super().__init__(monitor, mode, 0.0)

    def on_train_begin(self, logs: Logs) -> None:
        """Goes on: what it saved stays the best until something better comes."""

    def _check(self) -> None:
        folder = os.path.dirname(self.path)
        if folder and "{" not in folder and not os.path.isdir(folder):
            raise FileNotFoundError(errno.ENOENT, "expected a folder that exists for the path", self.path)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Saves, if it is time to."""
        if (epoch + 1) % self.every or (self.save_best_only and not self.improved(logs)):
            return
        import steepest

        trainer = self.trainer
        try:
            path = self.path.format(**{**logs, "epoch": epoch + 1})
        except KeyError as error:
            raise _unrecorded("path", error.args[0], logs) from None
        steepest.save(
            path,
            trainer.model,
            optimizer=trainer.optimizer,
            history=trainer.history,
            callbacks=trainer.callbacks,
            extra=self.extra,
        )


class CSVLogger(Callback):
    """Writes a row per epoch (counted from 1) to a CSV file; `append` continues an existing one."""

    def __init__(self, path: str | os.PathLike[str], *, append: bool = False) -> None:
        self.path, self.append = path, append
        self._names: list[str] | None = None

    def on_train_begin(self, logs: Logs) -> None:
        """Empties the file, or reads which columns it has."""
        self._names = None
        if self.append and os.path.exists(self.path):
            with _storage.naming(self.path), open(self.path, "a+", newline="") as file:
                file.seek(0)
                text = file.read()
                self._names = next(filter(None, csv.reader(io.StringIO(text, newline=""))), None)
                if text and not text.endswith("\n"):  # a last line that was cut, or edited
                    file.write("\r\n")
        else:
            open(self.path, "w").close()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Adds the row; the file is complete after every epoch."""
        row = {"epoch": epoch + 1, **logs}
        with _storage.naming(self.path), open(self.path, "a", newline="") as file:
            writer = csv.DictWriter(file, self._names or list(row), extrasaction="ignore")
            if self._names is None:
                self._names = list(row)
                writer.writeheader()
            writer.writerow(row)


def progress_bar(**options: Any) -> Any:
    """tqdm's, and not blank on a pseudo-terminal of 0 columns and rows, from which tqdm takes 1."""
    from tqdm import tqdm

    bar = tqdm(**options)
    if not bar.disable and bar.ncols == -1:
        bar.ncols = bar.nrows = None
    return bar


class ProgressBar(Callback):
    """Shows progress: one plain line per epoch, and on a terminal a tqdm bar while the epoch lasts.

    `file`: where to; None is the standard error for bars and the standard output for lines.
    """

    def __init__(self, *, file: TextIO | None = None) -> None:
        self.file = file
        self._bar: Any = None

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Opens the bar on a terminal."""
        if (self.file or sys.stderr).isatty():
            self._bar = progress_bar(total=self.params["steps"], desc=self._title(epoch), file=self.file, leave=False)

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Moves the bar."""
        self._advance(1)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Shows the epoch's figures."""
        self._close()  # a line may be wider than the terminal, where a bar would be cut
        figures = "  ".join(f"{name} {value:.4g}" for name, value in logs.items())
        print(f"{self._title(epoch)}  {figures}", file=self.file, flush=True)

    def on_train_end(self, logs: Logs) -> None:
        """Closes a bar that an error or Ctrl-C left open."""
        self._close()

    def _advance(self, batches: int) -> None:
        if self._bar is not None:
            self._bar.update(batches)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _title(self, epoch: int) -> str:
        epochs = self.params["epochs"]
        return f"epoch {epoch + 1:{len(str(epochs))}}/{epochs}"
