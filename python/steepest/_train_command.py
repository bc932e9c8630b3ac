"""`steepest train`."""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import math
import os
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import steepest as sp
from steepest import _settings, _storage, metrics, nn
from steepest._encoding import Encoding
from steepest._history import History
from steepest._proof import Proof, time_step
from steepest._task import DIGITS, Task, load_task
from steepest.callbacks import Callback, CSVLogger, EarlyStopping, ModelCheckpoint
from steepest.checkpoint import Checkpoint
from steepest.train import Trainer

SUFFIX = ".safetensors"
INTERVAL = 1.0  # seconds between two savings: a file that is on disk for certain takes its time


class Run(NamedTuple):
    """A training about to begin, or to go on after `history`."""

    settings: dict[str, Any]
    task: Task
    model: nn.Sequential
    optimizer: sp.Optimizer
    stopper: EarlyStopping | None
    watchers: list[Callback]
    history: History
    note: tuple[str, str] | None = None

    @property
    def epochs_done(self) -> int:
        return len(self.history.epoch)


def train(args: argparse.Namespace) -> int:
    """Train a model on data and test it; time its optimizer's step; prove its steps exact."""
    isa, threads = sp._core.build_info()["isa"], sp.get_num_threads()
    print(f"steepest {sp.__version__}, {isa}, {threads} thread{'s' * (threads != 1)}", flush=True)
    if args.resume and not args.out:
        raise ValueError("--resume: name the model to go on with: --out MODEL")
    if args.resume and args.__dict__["from"]:
        raise ValueError("--resume goes on with the run that wrote --out; leave --from out")
    check_files(args)
    run = _resumed_run(args) if args.resume else _new_run(args)
    _describe_run(run)
    proof = Proof()
    trainer = _fit(args, run, proof)
    _report(trainer, run)
    ours, theirs = time_step(run.optimizer, run.model.gradients())
    step = f"{type(run.optimizer).__name__} step of this model"
    line("speed", f"{step} {ours:.1f} us, NumPy's formula {theirs:.1f} us: {theirs / ours:.1f} times as fast")
    line("proof", proof.result())
    if args.plot:
        save_plot(trainer.history.plot(ax=new_axes()), args.plot)
        line("plot", args.plot)
    _suggest(args, run.settings)
    return 0


def line(label: str, text: str) -> None:
    """A label and what there is to say, at once."""
    print(f"{label:<15}{text}", flush=True)


def open_model(path: str, load: Callable[[str], Checkpoint] | None = None) -> Checkpoint:
    """A model that `steepest train` saved, without its optimizer; ValueError for another file."""
    saved = load(path) if load else sp.load(path, optimizer=False)
    if not {"settings", "encoding", "fingerprint", "last"} <= saved.extra.keys():
        raise ValueError(f"{path}: expected a model of steepest train, which keeps how its data are encoded")
    return saved


def check_writable(option: str, path: str, others: Mapping[str, str | None]) -> None:
    """ValueError if no file can be written there, or it is one of `others`; before time is spent on what goes in."""
    folder = Path(path).absolute().parent
    if Path(path).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"{option} {path}: expected a file in a folder that can be written to")
    for name, other in others.items():
        if other and _same(path, other):
            raise ValueError(f"{option} {path}: expected another name than {name}, got that of the same file")


def _same(a: str, b: str) -> bool:
    """Whether two names are one file's, which may not be there yet."""
    if os.path.exists(a) and os.path.exists(b):
        return os.path.samefile(a, b)
    return os.path.realpath(a) == os.path.realpath(b)


def new_axes() -> Any:
    """Axes of a figure of its own, drawn without a display."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('--plot needs matplotlib: pip install "steepest[plot]"') from error
    return Figure(figsize=(6.4, 4.8), layout="constrained").subplots()


def save_plot(ax: Any, path: str) -> None:
    """Replaces the file by the figure that the axes are of, at once or not at all."""
    drawn = io.BytesIO()
    ax.figure.savefig(drawn, format=Path(path).suffix[1:].lower())
    _storage.replace(path, (drawn.getbuffer(),))


def check_plot(path: str, others: Mapping[str, str | None]) -> None:
    """Raises if no plot can be saved there, or it is one of `others`."""
    check_writable("--plot", path, others)
    formats = new_axes().figure.canvas.get_supported_filetypes()
    if Path(path).suffix[1:].lower() not in formats:
        raise ValueError(f"--plot {path}: expected a name that ends in one of .{', .'.join(formats)}")


def check_files(args: argparse.Namespace) -> None:
    """Settles where the data are; raises if a file that is asked for cannot be written."""
    if args.source and args.data:
        raise ValueError("expected DATA or --data DATA, got both")
    args.data = args.data or args.source
    if args.out and not args.out.endswith(SUFFIX):
        raise ValueError(f"--out {args.out}: expected a name that ends in {SUFFIX}")
    _check_outputs(args, {"DATA": args.data})


def _check_outputs(args: argparse.Namespace, others: dict[str, str | None]) -> None:
    for option in ("out", "log"):
        if path := getattr(args, option, None):
            check_writable(f"--{option}", path, others)
            others[f"--{option}"] = path
    if args.plot:
        check_plot(args.plot, others)


def _check_room(settings: Mapping[str, Any], done: int, path: str) -> None:
    """Refuses to go on beyond the end of a schedule, where the rate is 0 or next to it."""
    length, epochs = settings["schedule_epochs"], settings["epochs"]
    if epochs < done:
        raise ValueError(f"--epochs: {path} has been trained for {done} already, got {epochs}")
    if epochs > length and _settings.SCHEDULES[settings["schedule"]].ends:
        raise ValueError(
            f"--epochs: the {settings['schedule']} schedule of {path} ends after epoch {length}; start with "
            f"--schedule-epochs {epochs} or --schedule constant, or fine-tune with --from {path}"
        )


def _new_run(args: argparse.Namespace) -> Run:
    settings = _settings.for_new_run(args)
    path = settings["from"]
    start = open_model(path) if path else None
    task = load_task(settings, Encoding.of_document(start.extra["encoding"]) if start else None)
    return run_of(settings, task, start)


def run_of(settings: dict[str, Any], task: Task, start: Checkpoint | None = None) -> Run:
    """A run from the beginning, or from a trained model."""
    steps = _settings.complete(settings, len(task.train[1]))
    model = _grafted(start, task, settings) if start else _new_model(task, settings)
    optimizer = _settings.make_optimizer(settings, model, steps)
    head = "a new last layer" if start and _new_head(start, task) else "all of its layers"
    note = ("from", f"{settings['from']}, with {head}") if start else None
    return Run(settings, task, model, optimizer, *_settings.callbacks_with_state(settings), History(), note)


def _resumed_run(args: argparse.Namespace) -> Run:
    kept = open_model(args.out).extra
    settings = _settings.for_resumed_run(args, kept["settings"])
    _check_outputs(args, {"DATA": settings["data"]})
    task = load_task(settings, Encoding.of_document(kept["encoding"]))
    if task.fingerprint != kept["fingerprint"]:
        raise ValueError(f"--resume: {args.out} was trained on other data than {settings['data'] or DIGITS}")
    stopper, watchers = _settings.callbacks_with_state(settings)
    saved = sp.load(args.out, callbacks=watchers)
    assert saved.optimizer is not None
    if kept["last"] is not None:
        saved.model.params[...] = kept["last"]
    _check_room(settings, saved.epoch, args.out)
    note = "resumed", f"{args.out}, after epoch {saved.epoch}"
    return Run(settings, task, saved.model, saved.optimizer, stopper, watchers, saved.history, note)


def _describe_run(run: Run) -> None:
    line("data", run.task.data)
    if run.settings["data"] not in (None, DIGITS):
        line("target", run.task.target)
    line("split", run.task.split)
    line("model", f"{describe(run.model)}, {run.model.params.size:,} parameters, float32{_frozen(run.model)}")
    line("optimizer", _settings.in_words(run.settings))
    if run.note:
        line(*run.note)


def _fit(args: argparse.Namespace, run: Run, proof: Proof) -> Trainer:
    extra = {"settings": run.settings, "encoding": run.task.encoding.document(), "fingerprint": run.task.fingerprint}
    saver = _Saver(args.out, run.stopper, extra) if args.out else None
    trainer = fit(run, [proof, *run.watchers, *_loggers(args, run), *([saver] if saver else [])])
    history = trainer.history
    if history.interrupted:
        if saver and saver.epochs:
            line("saved", f"{args.out}, after epoch {saver.epochs}; --resume goes on from there")
        raise KeyboardInterrupt
    stopper = run.stopper
    if stopper and stopper.best_epoch is not None:
        ended = "stopped" if stopper.stopped_epoch is not None else "ended"
        line(ended, f"after epoch {len(history.epoch)}; the weights are those of epoch {stopper.best_epoch + 1}")
    return trainer


def fit(run: Run, callbacks: list[Callback], verbose: bool = True) -> Trainer:
    """Trains; the trainer has what came of it."""
    settings, encoding = run.settings, run.task.encoding
    loss, score = (
        (sp.losses.softmax_cross_entropy, metrics.accuracy) if encoding.labelled else (sp.losses.mse, metrics.r2)
    )
    trainer = Trainer(run.model, loss, run.optimizer, [score])
    trainer.history = run.history
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # the trainer names a loss that is not finite
            trainer.fit(
                *run.task.train,
                batch_size=settings["batch_size"],
                epochs=settings["epochs"],
                validation_data=run.task.validation,
                class_weight=_class_weight(settings["class_weight"], encoding),
                seed=settings["seed"],
                callbacks=callbacks,
                initial_epoch=run.epochs_done,
                verbose=verbose,
            )
    except FloatingPointError as error:
        what, separator, _ = str(error).partition(";")  # what follows names arguments that are no options here
        advice = f"; expected a smaller --lr, got {settings['lr']:g}" if separator else ""
        raise FloatingPointError(what + advice) from error
    return trainer


def _new_model(task: Task, settings: Mapping[str, Any]) -> nn.Sequential:
    layers: list[nn.Layer] = []
    for width in settings["hidden"]:
        layers += [nn.Dense(width), _settings.ACTIVATIONS[settings["activation"]][1]()]
        layers += [nn.Dropout(settings["dropout"])] if settings["dropout"] else []
    return nn.Sequential([*layers, nn.Dense(task.encoding.outputs)], task.train[0].shape[1], seed=settings["seed"])


def _grafted(start: Checkpoint, task: Task, settings: Mapping[str, Any]) -> nn.Sequential:
    """The trained model, with a new last layer if that has other outputs to give."""
    config = start.model.config()
    config["seed"] = settings["seed"]
    head = len(config["layers"]) - 1
    config["layers"][head]["units"] = task.encoding.outputs
    model = nn.Sequential.from_config(config)
    trained = start.model.named_parameters()
    for name, parameter in model.named_parameters().items():
        if not _new_head(start, task) or int(name.split(".")[0]) < head:
            parameter[...] = trained[name]
    dense = [i for i, layer in enumerate(model.layers) if layer.declared]
    if settings["freeze"] >= len(dense):
        raise ValueError(
            f"--freeze: expected fewer than the model's {len(dense)} dense layers, got {settings['freeze']}"
        )
    if settings["freeze"]:
        model.freeze(dense[settings["freeze"] - 1] + 1)
    return model


def _new_head(start: Checkpoint, task: Task) -> bool:
    old, new = Encoding.of_document(start.extra["encoding"]), task.encoding
    if old.classes is None or new.classes is None:
        return old.task != new.task
    return not np.array_equal(old.classes, new.classes)


def describe(model: nn.Sequential) -> str:
    """Sizes, activation and dropout of a model."""
    units = [layer.units for layer in model.layers if hasattr(layer, "units")]
    sizes = "-".join(map(str, (model.input_shape[0], *units)))
    names = [words for words, make in _settings.ACTIVATIONS.values() if type(make()) in set(map(type, model.layers))]
    rates = {f"dropout {layer.rate:g}" for layer in model.layers if isinstance(layer, nn.Dropout)}
    kind = [model.kind] if hasattr(model, "kind") else []  # of a quantised one
    return ", ".join([sizes, *names, *rates, *kind])


def describe_file(path: str, saved: Checkpoint) -> str:
    """What a file holds, and where that comes from."""
    epochs = _settings.counted(saved.epoch, "epoch")
    return f"{path}: {describe(saved.model)}, {epochs}, by steepest {saved.version}"


def _frozen(model: nn.Sequential) -> str:
    layers = sum(bool(layer.declared) for layer in model.layers[: model.frozen])
    trained = sum(gradient.size for gradient in model.gradients())
    return f", the first {layers} frozen, {trained:,} trained" if layers else ""


class _Saver(ModelCheckpoint):
    """Keeps the run, after an epoch if it is the first or the last or the last time was a second ago.

    The best weights so far are the model, the last ones go along to go on with.
    """

    def __init__(self, path: str, stopper: EarlyStopping | None, extra: Mapping[str, Any]) -> None:
        super().__init__(path)
        self._stopper, self._run = stopper, extra
        self.epochs, self._saved = 0, -math.inf

    def get_state(self) -> dict[str, Any]:
        return {}

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        trainer, params = self.trainer, self.trainer.model.params
        ends = trainer.stop_training or epoch + 1 == self.params["epochs"]
        if not ends and time.monotonic() < self._saved + INTERVAL:
            return
        best = self._stopper.get_state()["_best_params"] if self._stopper else None
        last = None if best is None else params.copy()
        try:
            if best is not None:
                params[...] = best
            sp.save(
                self.path,
                trainer.model,
                optimizer=trainer.optimizer,
                history=trainer.history,
                callbacks=trainer.callbacks,
                extra={**self._run, "last": last},
            )
        finally:
            if last is not None:
                params[...] = last
        self.epochs, self._saved = epoch + 1, time.monotonic()


def _loggers(args: argparse.Namespace, run: Run) -> list[Callback]:
    if not args.log:
        return []
    if run.epochs_done and Path(args.log).exists():
        _trim_log(args.log, run.epochs_done)
    return [CSVLogger(args.log, append=run.epochs_done > 0)]


def _trim_log(path: str, epochs: int) -> None:
    """Leaves out the rows of epochs that will be trained again: a run may end between log and checkpoint."""
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    text = io.StringIO()
    csv.writer(text).writerows(
        row for i, row in enumerate(rows) if not i or (row and row[0].isdecimal() and int(row[0]) <= epochs)
    )
    _storage.replace(path, (memoryview(text.getvalue().encode()),))


def _class_weight(asked: Any, encoding: Encoding) -> Any:
    """By class number; ValueError for labels that there are not."""
    if asked is None:
        return None
    if encoding.classes is None:
        raise ValueError("--class-weight: a regression has no classes")
    if asked == "balanced":
        return asked
    labels = [str(label) for label in encoding.classes]
    unknown = [label for label in asked if label not in labels]
    if unknown:
        raise ValueError(f"--class-weight: no label {unknown[0]!r}; the labels are {', '.join(labels)}")
    return {labels.index(label): weight for label, weight in asked.items()}


def _report(trainer: Trainer, run: Run) -> None:
    x, y = run.task.test
    outputs, encoding = trainer.predict(x), run.task.encoding
    if encoding.labelled:
        right = int(np.count_nonzero(outputs.argmax(-1) == y))
        line("test accuracy", f"{right / len(y):.1%} ({right:,} of {len(y):,})")
        return
    true, predicted = encoding.values(y[:, None]), encoding.values(outputs)
    r2, rmse, mae = (score(true, predicted) for score in (metrics.r2, metrics.rmse, metrics.mae))
    line("test R2", f"{r2:.3f} (RMSE {rmse:.4g}, MAE {mae:.4g}, in {len(y):,} samples)")


def _suggest(args: argparse.Namespace, settings: Mapping[str, Any]) -> None:
    source = shlex.quote(settings["data"] or DIGITS)
    if args.out:
        model = shlex.quote(args.out)
        line("next", f"steepest evaluate {model} {source}    what it gets right and wrong")
        line("", f"steepest predict {model} {source} --out predictions.csv")
    else:
        names = (f"model{n}{SUFFIX}" for n in itertools.chain([""], itertools.count(2)))
        command, *options = args.words
        out = ["--out", next(name for name in names if not os.path.lexists(name))]
        # In front of the other options: a "--" among them may end all options.
        again = shlex.join(["steepest", command, *out, *options])
        line("next", f"{again}    keep the model, to predict with it")
    line("", "steepest verify    compare every kernel with its NumPy formula, bit for bit")
    if not args.out:
        line("", "steepest bench     time the kernels on this machine")
