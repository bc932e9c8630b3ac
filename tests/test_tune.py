"""`steepest.tune` and `steepest tune`: pruning, repeatable proposals, and studies that survive their processes."""

from __future__ import annotations

import copy
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import steepest as sp
from steepest import nn
from steepest.cli import main
from steepest.train import Trainer

optuna = pytest.importorskip("optuna")
import sqlalchemy.exc  # noqa: E402

from steepest import _tune_command  # noqa: E402
from steepest.tune import OptunaPruning, SeededSampler  # noqa: E402

SMALL = ["--hidden", "16", "--batch-size", "128", "--epochs", "3", "--optimizer", "adamw"]  # a trial of milliseconds


def fit(trial: Any, monitor: str, epochs: int = 4) -> list[float]:
    x = np.random.default_rng(0).normal(size=(32, 3))
    model = nn.Sequential([nn.Dense(1)], 3, dtype=np.float64)
    trainer = Trainer(model, sp.losses.mse, sp.SGD(model.param_groups(), lr=0.1))
    pruning = OptunaPruning(trial, monitor)
    history = trainer.fit(x, x[:, :1], epochs=epochs, validation_split=0.25, verbose=False, callbacks=[pruning])
    return history.history[monitor]


def test_every_epoch_is_reported() -> None:
    study = optuna.create_study()
    trial = study.ask()
    losses = fit(trial, "val_loss")
    (frozen,) = study.get_trials()
    assert frozen.intermediate_values == dict(enumerate(losses)) and len(losses) == 4


def test_the_pruner_ends_the_training() -> None:
    study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=-1.0, n_warmup_steps=1))
    study.optimize(lambda trial: fit(trial, "loss")[-1], n_trials=1)
    (frozen,) = study.get_trials()
    assert frozen.state.name == "PRUNED" and list(frozen.intermediate_values) == [0, 1]


def test_a_quantity_that_is_not_recorded_is_named() -> None:
    with pytest.raises(ValueError, match="no 'val_auc' in the logs, which have loss"):
        fit(optuna.create_study().ask(), "val_auc")


def test_a_copy_reports_to_the_same_trial() -> None:
    pruning = OptunaPruning(optuna.create_study().ask())
    assert copy.deepcopy([pruning])[0] is pruning
    sklearn = pytest.importorskip("sklearn.base")
    assert sklearn.clone(pruning) is pruning


def proposals(study: Any) -> list[dict[str, Any]]:
    return [trial.params for trial in study.get_trials()]


@pytest.mark.parametrize("name", ["TPESampler", "RandomSampler"])
def test_an_interrupted_study_goes_on_with_the_same_proposals(name: str) -> None:
    def objective(trial: Any) -> float:
        kind = trial.suggest_categorical("kind", ("a", "b"))
        return float(trial.suggest_float("x", -1, 1) ** 2 + (kind == "a"))

    def sampler() -> SeededSampler:
        return SeededSampler(lambda seed: getattr(optuna.samplers, name)(seed=seed), seed=3)

    whole = optuna.create_study(sampler=sampler())
    whole.optimize(objective, n_trials=16)
    parts = optuna.create_study(sampler=sampler())
    parts.optimize(objective, n_trials=5)
    parts.sampler = sampler()
    parts.optimize(objective, n_trials=11)
    assert proposals(parts) == proposals(whole)
    assert len({params["x"] for params in proposals(whole)}) == 16
    other = optuna.create_study(sampler=SeededSampler(lambda seed: getattr(optuna.samplers, name)(seed=seed), seed=4))
    other.optimize(objective, n_trials=1)
    assert proposals(other) != proposals(whole)[:1]


def trials_of(output: str) -> list[str]:
    return [re.sub(r"  \S+ s  ", "  ", line) for line in output.splitlines() if line.startswith("trial ")]


def test_a_search_repeats_from_its_seed(capsys: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for seed in (5, 5, 6):
        assert main(["tune", "--trials", "3", *SMALL, "--seed", str(seed)]) == 0
        outputs.append(trials_of(capsys.readouterr().out))
    assert outputs[0] == outputs[1] != outputs[2]
    assert len(outputs[0]) == 4  # and the table's header


def test_the_model_kept_is_the_best_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage, out, plot = f"sqlite:///{tmp_path}/study.db", tmp_path / "best.safetensors", tmp_path / "search.png"
    pytest.importorskip("matplotlib")
    command = ["tune", "--trials", "3", *SMALL, "--storage", storage, "--out", str(out), "--plot", str(plot)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    best = optuna.load_study(study_name="steepest", storage=storage).best_trial
    history = sp.load(out).history
    assert min(history.history["val_loss"]) == best.value
    assert plot.stat().st_size > 0
    same = next(line for line in printed.splitlines() if line.startswith("the same")).split()[3:]
    again = tmp_path / "again.safetensors"
    assert main([*same[:-1], str(again)]) == 0
    assert (sp.load(again).model.params == sp.load(out).model.params).all()


def test_a_grid_is_searched_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    fixed = [*SMALL, "--schedule", "constant", "--activation", "tanh", "--dropout", "0"]
    assert main(["tune", "--search", "grid", *fixed, "--storage", storage]) == 0
    assert "6 of 6 combinations" in capsys.readouterr().out
    study = optuna.load_study(study_name="steepest", storage=storage)
    assert len({tuple(sorted(params.items())) for params in proposals(study)}) == 6


def test_a_study_of_something_else_is_not_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["tune", "--trials", "1", *SMALL, "--storage", f"sqlite:///{tmp_path}/study.db"]
    assert main(command) == 0
    assert main([*command, "--dropout", "0.1"]) == 2
    assert "--study steepest: settings: expected those of this study, dropout searched;" in capsys.readouterr().err
    assert main([*command, "--l1", "0.1"]) == 2
    assert "--study steepest: settings: expected those of this study, l1 0.0;" in capsys.readouterr().err
    assert main([*command, "--l1", "0", "--early-stopping", "10"]) == 0  # the defaults
    assert main([*command, "--dropout", "0.1", "--study", "dropout"]) == 0


def test_a_study_of_another_kind_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    command = ["tune", "--trials", "3", *SMALL, "--storage", storage]
    for name, direction, trials in (("falls", "minimize", 2), ("rises", "maximize", 0)):
        study = optuna.create_study(storage=storage, study_name=name, direction=direction)
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=trials)
        assert main([*command, "--study", name]) == 2
        assert f"--study {name}: expected one of steepest tune, got another" in capsys.readouterr().err
        assert len(study.trials) == trials and not study.user_attrs


def test_a_trial_begun_by_one_process_is_told_by_another(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"

    def sampler() -> SeededSampler:
        return SeededSampler(lambda seed: optuna.samplers.TPESampler(seed=seed), 0)

    trial = optuna.create_study(storage=storage, study_name="s", sampler=sampler()).ask()
    trial.suggest_float("a", 0, 1)
    study = optuna.load_study(storage=storage, study_name="s", sampler=sampler())
    study.tell(trial.number, 0.5)
    assert study.best_value == 0.5


def test_ctrl_c_tells_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    objective, calls = _tune_command._objective, 0

    def interrupted(*args: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return objective(*args)

    monkeypatch.setattr(_tune_command, "_objective", interrupted)
    storage = f"sqlite:///{tmp_path}/study.db"
    command = ["tune", "--trials", "4", *SMALL[:-2], "--hidden", "8", "--epochs", "1"]
    assert main([*command, "--storage", storage]) == 130
    printed, errors = capsys.readouterr()
    assert "; up to 1 epoch a trial" in printed and not errors
    best = optuna.load_study(study_name="steepest", storage=storage).best_trial
    assert re.search(
        rf"2 complete, 0 pruned of 4; interrupted\ntrial .*\n +{best.number + 1} +{best.value:.4g} ", printed
    )
    assert re.search(rf"^the same .* --lr {best.user_attrs['settings']['lr']} ", printed, re.M)
    assert printed.endswith("next           the same command goes on with this study\n")
    assert main([*command, "--storage", storage]) == 0
    assert "4 complete, 0 pruned\n" in capsys.readouterr().out
    calls = 2
    assert main(command) == 130
    assert capsys.readouterr().out.endswith("trials         0 complete, 0 pruned of 4; interrupted\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--storage", "study.db"], "--storage: expected the URL of a database, as in sqlite:///study.db"),
        (["--storage", "sqlite:////nowhere/study.db"], "--storage: expected the URL of a database"),
        (["--validation-split", "0"], "the search needs validation data"),
        (["--out", "model.onnx"], "expected a name that ends in .safetensors"),
        (["--study", "abc"], "--study: expected --storage URL with it"),
        (["--heartbeat", "9"], "--heartbeat: expected --storage URL with it"),
        (["--trials", "0"], "expected a whole number from 1 up, got '0'"),
    ],
)
def test_bad_input(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert main(["tune", *options]) == 2
    except SystemExit as exit:
        assert exit.code == 2
    assert message in capsys.readouterr().err


def test_without_optuna(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["tune"]) == 2
    assert 'pip install "steepest[tune]"' in capsys.readouterr().err


def start(storage: str, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "steepest", "tune", "--storage", storage, "--heartbeat", "1", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def states(storage: str) -> Counter[str]:
    return Counter(trial.state.name for trial in optuna.load_study(study_name="steepest", storage=storage).get_trials())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills as POSIX does")
def test_a_killed_trial_is_run_again_and_none_is_lost(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    optuna.storages.RDBStorage(storage)  # the tables, which `killable` would make at the same time
    process = start(storage, "--trials", "2", *SMALL[:-4], "--epochs", "400", "--optimizer", "adamw")
    deadline = time.monotonic() + 60
    while not killable(storage):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert states(storage) == {"RUNNING": 1}
    other = start(storage, "--trials", "2", *SMALL[:-4], "--epochs", "400", "--optimizer", "adamw")
    output, errors = other.communicate(timeout=120)
    assert other.returncode == 0, errors
    ended = states(storage)
    assert ended["FAIL"] == 1 and ended["COMPLETE"] + ended["PRUNED"] == 2 and ended.total() == 3, output
    killed, *rest = optuna.load_study(study_name="steepest", storage=storage).get_trials()
    assert killed.state.name == "FAIL"
    assert killed.params in [trial.params for trial in rest]


def killable(storage: str) -> bool:
    try:
        trials = optuna.load_study(study_name="steepest", storage=storage).get_trials()
    except Exception:  # the study is not there yet, or not whole
        return False
    return bool(trials) and len(trials[0].intermediate_values) > 3


def test_tables_that_another_process_is_making_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [sqlalchemy.exc.IntegrityError("INSERT", None, Exception("UNIQUE constraint failed"))] * 2

    def storage(url: str, **options: Any) -> str:
        if failures:
            raise failures.pop()
        return "opened"

    monkeypatch.setattr(optuna.storages, "RDBStorage", storage)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert _tune_command._storage("sqlite://", 1) == "opened"
    failures += [sqlalchemy.exc.OperationalError("SELECT", None, Exception("no such host"))] * 9
    with pytest.raises(ValueError, match=r"--storage: expected the URL of a database.*no such host"):
        _tune_command._storage("sqlite://", 1)


def test_an_interrupted_trial_of_a_grid_is_run_again_and_no_other_twice() -> None:
    grid: dict[str, Any] = {"a": [0, 1], "b": [0, 1]}
    sampler = SeededSampler(lambda seed: optuna.samplers.GridSampler(grid, 0))
    study = optuna.create_study(sampler=sampler)
    calls = 0

    def objective(trial: Any) -> float:
        nonlocal calls
        calls += 1
        value = trial.suggest_int("a", 0, 1) + 2 * trial.suggest_int("b", 0, 1)
        if calls == 2:
            raise KeyboardInterrupt
        return float(value)

    with pytest.raises(KeyboardInterrupt):
        _tune_command._search(study, None, 4, objective)
    _tune_command._search(study, None, 4, objective)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    assert sorted(trial.value for trial in study.trials if trial.state.name == "COMPLETE") == [0, 1, 2, 3]
    assert calls == 5 and [trial.state.name for trial in study.trials].count("FAIL") == 1


@pytest.mark.slow
def test_a_trial_whose_process_was_killed_before_its_first_heartbeat_is_run_again(tmp_path: Path) -> None:
    storage = _tune_command._storage(f"sqlite:///{tmp_path}/study.db", 1)
    study = optuna.create_study(storage=storage)
    with pytest.warns(UserWarning, match="Heartbeat"):
        study.ask()
    _tune_command._search(study, storage, 3, lambda trial: trial.suggest_float("a", 0, 1))
    assert [trial.state.name for trial in study.trials] == ["FAIL", *["COMPLETE"] * 3]


@pytest.mark.slow
def test_two_processes_share_a_study(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    processes = [start(storage, "--trials", "12", *SMALL) for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    ended = states(storage)
    assert ended["COMPLETE"] + ended["PRUNED"] in (12, 13) and ended.total() < 14  # both may begin a last one
    params = [
        tuple(sorted(trial.params.items()))
        for trial in optuna.load_study(study_name="steepest", storage=storage).get_trials()
    ]
    assert len(set(params)) == len(params)
