"""`steepest tune`."""

from __future__ import annotations

import argparse
import itertools
import math
import os
import shlex
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from steepest import _settings, _train_command
from steepest._settings import counted
from steepest._task import DIGITS, Task, load_task
from steepest._train_command import check_files, line, save_plot
from steepest.callbacks import progress_bar

PATIENCE = 10  # epochs without a smaller validation loss
GRACE = 3  # heartbeats that a trial may miss before it counts as killed
BEST = 5  # rows of the table


class Choice(NamedTuple):
    """What is searched for a setting: how a trial is asked, and the values of a grid."""

    ask: Callable[[Any], Any]
    grid: tuple[Any, ...]


def _one_of(name: str, values: tuple[Any, ...], grid: tuple[Any, ...]) -> Choice:
    return Choice(lambda trial: trial.suggest_categorical(name, values), grid)


# By the parameter's name. The rate is searched around the one that suits the optimizer.
SPACE = {
    "optimizer": _one_of("optimizer", tuple(_settings.OPTIMIZERS), ("adamw", "sgd")),
    "lr_factor": Choice(lambda trial: trial.suggest_float("lr_factor", 0.1, 10.0, log=True), (0.3, 1.0, 3.0)),
    "schedule": _one_of("schedule", tuple(_settings.SCHEDULES), ("constant", "cosine")),
    "batch_size": _one_of("batch_size", (16, 32, 64, 128, 256), (32, 128)),
    "layers": Choice(lambda trial: trial.suggest_int("layers", 1, 3), (1, 2)),
    "units": _one_of("units", (32, 64, 128, 256, 512), (64, 256)),
    "activation": _one_of("activation", tuple(_settings.ACTIVATIONS), ("relu", "tanh")),
    "dropout": Choice(lambda trial: trial.suggest_float("dropout", 0.0, 0.5, step=0.1), (0.0, 0.2)),
    "weight_decay": Choice(lambda trial: trial.suggest_float("weight_decay", 1e-5, 0.3, log=True), (1e-4, 0.1)),
}
FIXED_BY = {"lr_factor": "lr", "layers": "hidden", "units": "hidden"}  # else by the option of the same name


def tune(args: argparse.Namespace) -> int:
    """Search for the settings that give the smallest validation loss, and keep the model that they make.

    What an option of training names is fixed; the rest of optimizer, learning rate, schedule, batch size,
    layers, units, activation, dropout and weight decay is searched. Interrupted or killed, the same
    command with the same --storage goes on; several processes may work at one study.
    """
    optuna = _optuna()
    check_files(args)
    fixed = _settings.for_new_run(args)
    fixed["early_stopping"] = fixed["early_stopping"] or PATIENCE
    if fixed["validation_split"] == 0:
        raise ValueError("--validation-split: the search needs validation data; expected a fraction above 0")
    for option in ("study", "heartbeat"):
        if getattr(args, option) is not None and not args.storage:
            raise ValueError(f"--{option}: expected --storage URL with it, which keeps the study, got none")
    named = _settings.given(args)
    space = {name: choice for name, choice in SPACE.items() if FIXED_BY.get(name, name) not in named}
    searched = {FIXED_BY.get(name, name) for name in space}
    if not space:
        raise ValueError("every setting is fixed: there is nothing to search")
    task = load_task(fixed, None)
    if task.validation is None:
        raise ValueError("the search needs validation data, and these have none")
    same = dict(fixed)  # in every trial, whether an option says so or not; the data have a fingerprint
    _settings.complete(same, len(task.train[1]))
    settings = {name: repr(value) for name, value in same.items() if name not in searched | {"data"}}
    storage = _storage(args.storage, args.heartbeat or 20) if args.storage else None
    study = _study(args, storage, space, {"data": task.fingerprint, "settings": settings, "search": args.search})
    line("data", task.data)
    line("split", task.split)
    most = counted(fixed["epochs"], "epoch") if fixed["epochs"] else "the usual epochs"
    line("search", f"{args.search} over {', '.join(space)}; up to {most} a trial")
    trials = args.trials
    if args.search == "grid":
        size = math.prod(len(choice.grid) for choice in space.values())
        trials = min(trials, size)
        line("grid", f"{trials:,} of {size:,} combinations")
    try:
        _search(study, storage, trials, lambda trial: _objective(trial, fixed, space, task))
    except KeyboardInterrupt:
        if complete := _complete(study, f" of {trials}; interrupted"):
            line("the same", _command(_report(complete, {}).user_attrs["settings"], args.out))
        if storage:
            line("next", "the same command goes on with this study")
        raise
    complete = _complete(study)
    if not complete:
        raise ValueError("no trial came to its end: every loss was infinite or not a number")
    shares = optuna.importance.get_param_importances(study) if len(complete) > 1 else {}
    best = _report(complete, shares)
    if args.plot:
        _plot(complete, shares, args.plot)
        line("plot", args.plot)
    settings = best.user_attrs["settings"]
    line("the same", _command(settings, args.out))
    if args.out:
        files = {"source": None, "resume": False, "log": None, "plot": None, "out": args.out}
        settings = settings | {"hidden": tuple(settings["hidden"])}
        return _train_command.train(argparse.Namespace(**settings, **files))
    return 0


def _complete(study: Any, note: str = "") -> list[Any]:
    """The trials that came to their ends; prints how many did."""
    from optuna.trial import TrialState

    complete: list[Any] = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    pruned = len(study.get_trials(deepcopy=False, states=(TrialState.PRUNED,)))
    line("trials", f"{len(complete)} complete, {pruned} pruned{note}")
    return complete


def _optuna() -> Any:
    try:
        import optuna

        import steepest.tune  # noqa: F401
    except ImportError as error:
        raise ImportError('steepest tune needs Optuna: pip install "steepest[tune]"') from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _study(args: argparse.Namespace, storage: Any, space: Mapping[str, Choice], contents: Mapping[str, Any]) -> Any:
    """The study, new or as it was left; ValueError if that searched something else."""
    import optuna

    from steepest.tune import SeededSampler

    def sampler(seed: int) -> Any:
        if args.search == "grid":
            grid = {name: choice.grid for name, choice in space.items()}
            return optuna.samplers.GridSampler(grid, args.seed or 0)  # its seed numbers the grid's points
        if args.search == "random":
            return optuna.samplers.RandomSampler(seed)
        return optuna.samplers.TPESampler(seed=seed)

    name = args.study or "steepest"
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        load_if_exists=True,
        sampler=SeededSampler(sampler, args.seed or 0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=3),
    )
    kept = study.user_attrs
    is_minimized = study.direction == optuna.study.StudyDirection.MINIMIZE
    if not is_minimized or (study.trials and not kept.keys() >= contents.keys()):
        raise ValueError(f"--study {name}: expected one of steepest tune, got another; give this search a new name")
    for what, content in contents.items():
        known = kept.get(what, content)
        if known != content:
            if isinstance(known, dict):
                other = sorted(known.items() ^ content.items())
                known = ", ".join(f"{setting} {known.get(setting, 'searched')}" for setting in dict(other))
            raise ValueError(
                f"--study {name}: {what}: expected those of this study, {known}; give this search a new name"
            )
    for what, content in contents.items():
        study.set_user_attr(what, content)
    return study


def _storage(url: str, heartbeat: int) -> Any:
    import optuna
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError

    def opened(attempts: int) -> Any:
        try:
            return optuna.storages.RDBStorage(
                url,
                heartbeat_interval=heartbeat,
                grace_period=GRACE * heartbeat,
                heartbeat_stale_trial_callback=_retry(),
            )
        except DBAPIError:  # another process may be making the tables
            if attempts == 1:
                raise
            time.sleep(0.2)
            return opened(attempts - 1)

    try:
        shown = make_url(url).render_as_string(hide_password=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return opened(attempts=5)
    except SQLAlchemyError as error:
        reason = str(error).partition("\n")[0].replace(url, "URL")
        raise ValueError(f"--storage: expected the URL of a database, as in sqlite:///study.db: {reason}") from error
    except ImportError as error:
        raise ImportError(f"--storage {shown}: {error}") from error


def _retry() -> Callable[[Any, Any], None]:
    """What has a trial run again."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        retry: Callable[[Any, Any], None] = optuna.storages.RetryHeartbeatStaleTrialCallback()
        return retry


def _search(study: Any, storage: Any, trials: int, objective: Callable[[Any], float]) -> None:
    """Runs trials, as many as are missing, and those again that were interrupted or whose processes were killed.

    Waits for other processes' last ones.
    """
    import optuna
    from optuna.trial import TrialState

    interrupted: list[int] = []
    seen: set[int] = set()
    retry = _retry()

    def watched(trial: Any) -> float:
        try:
            return objective(trial)
        except KeyboardInterrupt:
            optuna.logging.set_verbosity(optuna.logging.ERROR)  # it would tell where
            interrupted.append(trial.number)
            raise

    bar = progress_bar(total=trials, unit="trial", disable=not sys.stderr.isatty())
    bar.display() if not bar.disable else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            while True:
                optuna.storages.fail_stale_trials(study)
                all_trials = study.get_trials(deepcopy=False)
                count = Counter(trial.state for trial in all_trials)
                for trial in all_trials:  # its process may have been killed before the trial's first heartbeat
                    if storage is not None and trial.state == TrialState.RUNNING and trial.number not in seen:
                        seen.add(trial.number)
                        storage.record_heartbeat(trial._trial_id)
                done = count[TrialState.COMPLETE] + count[TrialState.PRUNED]
                bar.update(done - bar.n)
                if count[TrialState.WAITING] or done + count[TrialState.RUNNING] < trials:
                    study.optimize(watched, n_trials=1, callbacks=[_tell(bar, trials)])
                elif count[TrialState.RUNNING]:
                    time.sleep(0.2)
                else:
                    return
    except KeyboardInterrupt:
        for number in interrupted:
            retry(study, study.trials[number])
        raise
    finally:
        bar.close()


def _tell(bar: Any, trials: int) -> Callable[[Any, Any], None]:
    """A callback that says how a trial went: beside the bar, or in a line of its own."""

    def tell(study: Any, trial: Any) -> None:
        try:
            best = f"best {study.best_value:.4g}"
        except ValueError:  # none is complete
            best = "none complete yet"
        if not bar.disable:
            bar.set_postfix_str(best)
            return
        result = f"val_loss {trial.value:.4g}" if trial.value is not None else "no loss"
        state = "" if trial.state.name == "COMPLETE" else f", {trial.state.name.lower()}"
        seconds = trial.duration.total_seconds()
        title = f"trial {trial.number + 1:{len(str(trials))}}/{trials}"
        print(f"{title}  {result}{state}  {seconds:.1f} s  {best}", flush=True)

    return tell


def _objective(trial: Any, fixed: Mapping[str, Any], space: Mapping[str, Choice], task: Task) -> float:
    """The smallest validation loss of a run with the settings that the trial proposes."""
    import optuna

    from steepest.tune import OptunaPruning

    trial.set_user_attr("pid", os.getpid())
    asked = {name: choice.ask(trial) for name, choice in space.items()}
    settings = {**fixed, **{name: value for name, value in asked.items() if name in fixed}}
    if "lr_factor" in asked:
        settings["lr"] = _settings.SUITED[settings["optimizer"]].lr * asked["lr_factor"]
    if "layers" in asked:
        settings["hidden"] = (asked["units"],) * asked["layers"]
    run = _train_command.run_of(settings, task)
    trial.set_user_attr("settings", run.settings)
    assert run.stopper is not None
    try:
        trainer = _train_command.fit(run, [*run.watchers, OptunaPruning(trial)], verbose=False)
    except FloatingPointError as error:
        raise optuna.TrialPruned(str(error)) from error
    if trainer.history.interrupted:
        raise KeyboardInterrupt
    best = run.stopper.best_epoch
    assert best is not None
    for name in ("val_accuracy", "val_r2"):
        if name in trainer.history.history:
            trial.set_user_attr(name, trainer.history.history[name][best])
    trial.set_user_attr("epochs", best + 1)
    return run.stopper.best


def _report(complete: list[Any], shares: Mapping[str, float]) -> Any:
    """Prints the best trials and what mattered; returns the best."""
    ranked = sorted(complete, key=lambda trial: trial.value)
    score = next(name for name in ("val_accuracy", "val_r2") if name in ranked[0].user_attrs)
    header = ("trial", "val_loss", score, "epochs", "optimizer", "lr", "schedule", "batch", "hidden", "activation")
    rows = [(*header, "dropout", "decay")] + [_row(trial, score) for trial in ranked[:BEST]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    if shares:
        line("mattered", ", ".join(f"{name} {share:.0%}" for name, share in itertools.islice(shares.items(), 5)))
    return ranked[0]


def _row(trial: Any, score: str) -> tuple[str, ...]:
    s = trial.user_attrs["settings"]
    return (
        str(trial.number + 1),
        f"{trial.value:.4g}",
        f"{trial.user_attrs[score]:.4f}",
        str(trial.user_attrs["epochs"]),
        s["optimizer"],
        f"{s['lr']:.3g}",
        s["schedule"],
        str(s["batch_size"]),
        ",".join(map(str, s["hidden"])) or "none",
        s["activation"],
        f"{s['dropout']:.1g}",
        f"{s['weight_decay']:.2g}",
    )


def _command(settings: Mapping[str, Any], out: str | None) -> str:
    """The `steepest train` that makes the same model."""
    words = ["steepest", "train", settings["data"] or DIGITS]
    for name, value in settings.items():
        if name != "data" and value != _settings.DEFAULTS[name] and not (name == "freeze" or value is None):
            text = ",".join(map(str, value)) or "none" if isinstance(value, (list, tuple)) else str(value)
            words += [f"--{name.replace('_', '-')}", text]
    return shlex.join(words + (["--out", out] if out else []))


def _plot(complete: list[Any], shares: Mapping[str, float], path: str) -> None:
    """The history of the search, and what mattered."""
    from matplotlib.figure import Figure

    numbers, values = [trial.number + 1 for trial in complete], [trial.value for trial in complete]
    history, importance = Figure(figsize=(10, 4), layout="constrained").subplots(1, 2)
    history.plot(numbers, values, "o", label="trial")
    history.step(numbers, list(itertools.accumulate(values, min)), where="post", label="best so far")
    history.set(xlabel="trial", ylabel="validation loss", yscale="log", title="history")
    history.legend()
    importance.barh(list(shares)[::-1], list(shares.values())[::-1])
    importance.set(xlabel="share", title="importance")
    save_plot(history, path)
