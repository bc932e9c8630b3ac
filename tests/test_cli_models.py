"""The command line on tables, and with models that it keeps: resume, fine-tune, evaluate, predict."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
import sklearn.metrics

import steepest as sp
from steepest import _settings, _train_command, cli, datasets

Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs a command in a folder of its own and returns what it prints, or the error that it must end with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_train_command, "time_step", lambda optimizer, gradients: (1.0, 2.0))  # takes its time

    def run(*args: Any, code: int = 0) -> str:
        assert cli.main(list(map(str, args))) == code
        out, err = capsys.readouterr()
        assert err.count("\n") == (code != 0), err
        return err if code else out

    return run


def write(path: str, rows: Iterable[Iterable[Any]]) -> str:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def export(name: str) -> str:
    """A data set of scikit-learn as a CSV file."""
    data = getattr(sklearn.datasets, f"load_{name}")()
    y = data.target_names[data.target] if hasattr(data, "target_names") else data.target
    return write(f"{name}.csv", [[*data.feature_names, "kind"], *([*x, t] for x, t in zip(data.data, y, strict=True))])


def trees(n: int = 120) -> list[list[Any]]:
    """What depends on strings and numbers alike."""
    rng = np.random.default_rng(0)
    kinds, wet, age = rng.choice(["fir, silver", "oak", "elm"], n), rng.choice(["yes", "no"], n), rng.uniform(0, 9, n)
    height = 2 * age + 6 * (kinds == "oak") + 3 * (wet == "yes") + rng.normal(0, 0.1, n)
    return [["kind", "wet", "age", "planet", "height"]] + [
        [k, w, f"{a:.3f}", 3, f"{h:.3f}"] for k, w, a, h in zip(kinds, wet, age, height, strict=True)
    ]


def weights(path: str) -> Any:
    return sp.load(path).model.params


QUICK = ("--hidden", "16", "--epochs", "2")
REGRESSION = ("--task", "regression")


# ---- tables


@pytest.mark.parametrize(("name", "least"), [("iris", 0.8), ("wine", 0.9), ("breast_cancer", 0.9)])
def test_tables_of_classes(run: Run, name: str, least: float) -> None:
    text = run("train", export(name))
    assert "kind: classification (guessed; else --task regression) into " in text
    right, total = map(int, re.search(r"^test accuracy .*\((\d+) of (\d+)\)", text, re.M).groups())  # type: ignore[union-attr]
    y = getattr(sklearn.datasets, f"load_{name}")().target
    assert right / total > least > np.bincount(y).max() / len(y)


def test_a_table_of_values(run: Run) -> None:
    options = ("--early-stopping", "5", "--dropout", "0.3", "--out", "m.safetensors")
    text = run("train", export("diabetes"), *options)
    assert "kind: regression (guessed; else --task classification), mean 15" in text
    r2 = float(re.search(r"^test R2 +(\S+) \(RMSE .*, MAE .*, in 88 samples\)", text, re.M).group(1))  # type: ignore[union-attr]
    assert r2 > 0.2  # the mean of the target has 0
    assert labels(text)[-6:] == ["test R2", "speed", "proof", "next", "", ""]
    scores = json.loads(run("evaluate", "m.safetensors", "diabetes.csv", "--json"))
    assert scores["samples"] == 88 and scores["part"] == "held out"
    assert f"{scores['r2']:.3f}" == f"{r2:.3f}"
    assert scores["mse"] == pytest.approx(scores["rmse"] ** 2)


def labels(text: str) -> list[str]:
    return [line[:15].strip() for line in text.splitlines()]


def test_a_table_with_strings(run: Run) -> None:
    rows = trees()
    text = run("train", write("trees.csv", rows), "--out", "m.safetensors", "--epochs", 60)
    assert "120 samples of 7 features (of 4 columns; one per value of kind, wet)" in text
    assert "1 of them constant (planet)" in text
    assert float(re.search(r"^test R2 +(\S+)", text, re.M).group(1)) > 0.95  # type: ignore[union-attr]

    header, *rest = rows
    predicted = run("predict", "m.safetensors", write("whole.csv", rows))
    assert predicted.splitlines()[0] == "value"
    assert len(predicted.splitlines()) == len(rows)
    turned = [[*row[:4][::-1], "more"] for row in rest]  # other columns in another order, and no target
    assert run("predict", "m.safetensors", write("turned.csv", [[*header[:4][::-1], "note"], *turned])) == predicted

    rest[5][0] = "yew"
    assert "column kind: expected one of elm, fir, silver, oak, got 'yew'" in run(
        "predict", "m.safetensors", write("new.csv", rows), code=2
    )
    rest[5][0], rest[7][2] = "oak", "old"
    assert "column age: expected numbers, got 'old'" in run("evaluate", "m.safetensors", write("new.csv", rows), code=2)
    assert "no column wet, which the model needs" in run(
        "predict", "m.safetensors", write("new.csv", [["kind", "age", "planet"], ["oak", 1, 3]]), code=2
    )


def labelled(run: Run, kinds: tuple[str, ...], target: str) -> str:
    """A model of a column of strings, some of which are numbers too, as a feature or as the target."""
    names, rows = ["k", "a", "y"], [[kinds[i % 3], i % 7, "neg" if i % 3 else "pos"] for i in range(150)]
    write("k.csv", [names, *rows])
    run("train", "k.csv", "--target", target, "--epochs", 5, "--out", "k.safetensors")
    return "k.safetensors"


@pytest.mark.parametrize(("kinds", "row"), [(("1", "01", "x"), ["01", 3]), (("01", "02", "x"), ["02", 3])])
def test_strings_that_are_numbers_in_another_file(run: Run, kinds: tuple[str, ...], row: list[Any]) -> None:
    model = labelled(run, kinds, "y")
    alone = run("predict", model, write("one.csv", [["k", "a"], row])).splitlines()
    both = run("predict", model, write("two.csv", [["k", "a"], row, ["x", 3]])).splitlines()
    assert alone == both[:2] and alone[1].startswith("neg")


def test_labels_that_are_numbers_in_another_file(run: Run) -> None:
    model = labelled(run, ("1", "2", "x"), "k")
    rows: list[Any] = [["k", "a", "y"], *([i % 2 + 1, i % 7, "neg" if i % 2 else "pos"] for i in range(20))]
    scores = json.loads(run("evaluate", model, write("two.csv", rows), "--json"))
    assert scores["samples"] == 20 and [scores["classes"][name]["samples"] for name in "12x"] == [10, 10, 0]
    assert json.loads(run("evaluate", model, "k.csv", "--json"))["part"] == "held out"
    rows[3][0] = 5
    assert "no training sample has the label 5" in run("evaluate", model, write("two.csv", rows), code=2)


def test_large_labels_stay_apart(run: Run) -> None:
    rows: list[Any] = [["x", "y"], *([i % 7, (2**53, 2**53 + 1, 5)[i % 3]] for i in range(90))]
    assert "classification into 5, 9007199254740992, 9007199254740993" in run(
        "train", write("t.csv", rows), "--task", "classification", *QUICK
    )
    rows[1][1] = 2**63
    assert "expected class labels that floats hold exactly" in run("train", write("t.csv", rows), *QUICK, code=2)


def test_labels_of_bytes(run: Run) -> None:
    np.savez("b.npz", X=np.arange(90.0)[:, None] % 7, y=np.array([b"a", b"b"])[np.arange(90) % 2])
    assert "y: classification (guessed; else --task regression) into a, b" in run(
        "train", "b.npz", "--out", "m.safetensors", *QUICK
    )
    assert run("predict", "m.safetensors", "b.npz").startswith("label,p(a),p(b)\n")


def test_a_table_without_names(run: Run) -> None:
    rows = [[int(i % 3 == 0), i % 3, i / 120, i % 3 + 0.1] for i in range(120)]
    text = run("train", write("t.csv", rows), "--target", "2", "--out", "m.safetensors", *QUICK)
    assert "120 samples of 3 features, 3 classes" in text and "2: classification" in text
    predicted = run("predict", "m.safetensors", "t.csv")
    assert predicted.splitlines()[0] == "label,p(0),p(1),p(2)"
    without = write("u.csv", [[a, c, d] for a, _, c, d in rows])
    assert run("predict", "m.safetensors", without) == predicted
    assert "expected 3 columns, as the model's data had, got 1" in run(
        "predict", "m.safetensors", write("v.csv", [[1], [2]]), code=2
    )


def test_what_is_a_class_is_guessed_and_can_be_told(run: Run) -> None:
    rows: list[Any] = [["x", "stars"], *([i % 7, i % 5] for i in range(100))]
    assert "classification (guessed" in run("train", write("t.csv", rows), *QUICK)
    text = run("train", "t.csv", "--task", "regression", *QUICK)
    assert re.search(r"stars: regression, mean [12]\.\d+, standard deviation 1\.", text) and "guessed" not in text
    many: list[Any] = [["x", "age"], *([i % 7, i % 60] for i in range(100))]
    assert "age: regression (guessed" in run("train", write("t.csv", many), *QUICK)
    floats: list[Any] = [["x", "z"], *([i, i % 2 + 0.5] for i in range(100))]
    assert "expected class labels (whole numbers or strings), got 0.5" in run(
        "train", write("t.csv", floats), "--task", "classification", code=2
    )


def test_a_column_that_counts_the_rows_is_left_out(run: Run) -> None:
    rows: list[Any] = [["", "x", "y"], *([i, i % 7, i % 2] for i in range(100))]
    assert "100 samples of 1 feature, 2 classes, standardised, without the first column" in run(
        "train", write("t.csv", rows), *QUICK
    )


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (["a,b,y", "1,2,3", "1,2"], (), "t.csv: line 3: expected 3 fields"),
        (["a,y", "1,x", ",z"], (), r"missing values: 1 in column a \(the first in line 3\)"),
        (["a,y", *["1,x"] * 50], (), "all labels are x; expected at least two classes"),
        (["a,y", *["1,2.5"] * 50], (), "all values of y are 2.5: there is nothing to learn"),
        (["a,y", *["1,1e300", "2,-1e300"] * 50], REGRESSION, "t.csv: the values of y are too large to standardise"),
        (["a,y", *["1,1e-300", "2,0"] * 50], REGRESSION, "t.csv: the values of y are too small to standardise"),
        (["a,y", "1,2.5"], REGRESSION, r"t.csv: too few samples for --validation-split 0.1 .*, got 1; give more"),
        (["a,y", *["1,x", "2,z"] * 9], ("--validation-split", "0.9"), r"-split 0.9 .*, got 18 \(classes: 2\); give"),
        (["a,y", *["inf,x", "1,y"] * 50], (), "50 missing or infinite values, the first in sample 0"),
        (["y", *["1", "2"] * 50], (), "there are no features beside the target y"),
        (["a,y", *[f"id{i},{i % 2}" for i in range(50)]], (), "column a has 50 different strings in 50 rows"),
        (["a,y", *[f"{i},{i % 2}" for i in range(60)], "o7,1"], (), r"too many .* \(such as 'o7'\)"),
        (["a,y", *["1,x", "2,z"] * 50], ("--target", "b"), "--target: no column 'b'; the columns are a, y"),
        (["a,y", *["1,x", "2,z"] * 50], ("--ignore", "a,b"), "--ignore: no column 'b'"),
        (["a,y", *["1,x", "2,z"] * 50], ("--ignore", "a"), "no features beside the target y"),
        (["a,y", *["1,x", "2,z"] * 50], ("--task", "regression"), "y: expected numbers for a regression, got 'x'"),
        (["a,y", *["1,x", "2,z"] * 50], ("--class-weight", "q=2"), "no label 'q'; the labels are x, z"),
        (["a,y", *["1,1.5", "2,2.5"] * 50], ("--class-weight", "balanced"), "a regression has no classes"),
    ],
)
def test_unusable_tables(run: Run, rows: list[str], options: tuple[str, ...], message: str) -> None:
    Path("t.csv").write_text("\n".join(rows))
    assert re.search(message, run("train", "t.csv", *options, code=2))


# ---- options


@pytest.mark.parametrize(
    ("activation", "schedule"), list(zip(cycle(_settings.ACTIVATIONS), _settings.SCHEDULES, strict=False))
)
def test_options(run: Run, activation: str, schedule: str) -> None:
    options = ("--dropout", "0.2", "--l1", "0.001", "--validation-split", "0.2", "--class-weight", "balanced")
    text = run("train", "--activation", activation, "--schedule", schedule, *options, *QUICK)
    assert f", {_settings.ACTIVATIONS[activation][0]}, dropout 0.2, " in text
    assert _settings.SCHEDULES[schedule].words in text
    assert "1,079 training, 359 validation, 359 test" in text or "360 validation" in text
    assert "l1 0.001" in text
    assert "all 1,210 weights identical, bit for bit" in text


def test_class_weights_and_no_validation(run: Run) -> None:
    rows: list[Any] = [["x", "y"], *([i % 10, "rare" if i % 10 == 9 else "common"] for i in range(200))]
    write("t.csv", rows)
    run("train", "t.csv", "--out", "a.safetensors", *QUICK)
    run("train", "t.csv", "--out", "b.safetensors", "--class-weight", "rare=5, common=1", *QUICK)
    assert not np.array_equal(weights("a.safetensors"), weights("b.safetensors"))
    text = run("train", "t.csv", "--validation-split", "0", *QUICK)
    assert "160 training, 40 test" in text and "val_" not in text


def test_early_stopping_keeps_the_best_weights(run: Run) -> None:
    text = run("train", export("diabetes"), "--early-stopping", "2", "--out", "m.safetensors", "--log", "log.csv")
    stopped, best = map(int, re.search(r"after epoch (\d+); the weights are those of epoch (\d+)", text).groups())  # type: ignore[union-attr]
    assert stopped == best + 2 < 40
    with open("log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(1, stopped + 1))
    losses = [float(row["val_loss"]) for row in rows]
    assert min(losses) == losses[best - 1]
    r2 = json.loads(run("evaluate", "m.safetensors", "diabetes.csv", "--json"))["r2"]
    assert f"{r2:.3f}" in text


# ---- resume


RUNS = {
    "constant": ("--schedule", "constant", "--dropout", "0.3"),
    "cosine": ("--schedule-epochs", "6", "--optimizer", "nadam", "--l1", "0.001"),
    "plateau": ("--schedule", "plateau", "--early-stopping", "4", "--optimizer", "sgd", "--lr", "0.5"),
    "exponential": ("--schedule", "exponential", "--early-stopping", "1", "--class-weight", "balanced"),
}


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_resumed_training_ends_with_the_same_bits(run: Run, options: tuple[str, ...]) -> None:
    data = export("breast_cancer")
    whole = run("train", data, "--hidden", "16", *options, "--epochs", 6, "--out", "a.safetensors", "--log", "a.csv")
    run("train", data, "--hidden", "16", *options, "--epochs", 3, "--out", "b.safetensors", "--log", "b.csv")
    with open("b.csv", "a") as file:
        file.write("4,0,0,0,0,0\n")  # as if it had been killed between log and checkpoint
    text = run("train", "--resume", "--out", "b.safetensors", "--epochs", 6, "--log", "b.csv")
    assert "resumed        b.safetensors, after epoch " in text
    assert "identical, bit for bit" in text or "no step was made" in text
    assert weights("a.safetensors").tobytes() == weights("b.safetensors").tobytes()
    assert Path("a.csv").read_text() == Path("b.csv").read_text()
    accuracy = re.compile("^test accuracy.*$", re.M)
    assert accuracy.findall(whole) == accuracy.findall(text)
    again = run("train", "--resume", "--out", "b.safetensors")  # nothing is left to do
    assert accuracy.findall(whole) == accuracy.findall(again)
    assert weights("a.safetensors").tobytes() == weights("b.safetensors").tobytes()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_killed_run_resumes_with_the_same_bits(run: Run, tmp_path: Path) -> None:
    command = ("train", "--hidden", "256,128", "--epochs", "30", "--dropout", "0.1", "--out")
    run(*command, "a.safetensors")
    process = subprocess.Popen(
        [sys.executable, "-m", "steepest", *command, "b.safetensors"], cwd=tmp_path, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    while not Path("b.safetensors").exists():
        time.sleep(0.005)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert sp.load("b.safetensors").epoch < 30
    run("train", "--resume", "--out", "b.safetensors")
    assert weights("a.safetensors").tobytes() == weights("b.safetensors").tobytes()


def test_resume_refuses_another_run(run: Run) -> None:
    rows = trees()
    run("train", write("t.csv", rows), "--out", "m.safetensors", *QUICK)
    before = Path("m.safetensors").read_bytes()
    resume = ("train", "--resume", "--out", "m.safetensors")
    assert "--lr: the run to resume has 0.003, not 0.1" in run(*resume, "--lr", "0.1", code=2)
    assert "--seed: the run to resume has 0, not 1" in run(*resume, "--seed", "1", code=2)
    assert "has been trained for 2 already, got 1" in run(*resume, "--epochs", "1", code=2)
    assert "the cosine schedule of m.safetensors ends after epoch 2" in run(*resume, "--epochs", "3", code=2)
    rows[1][2] = "4.5"
    assert "was trained on other data" in run(*resume, "--data", write("u.csv", rows), code=2)
    sp.save("other.safetensors", sp.load("m.safetensors").model)
    assert "expected a model of steepest train" in run("train", "--resume", "--out", "other.safetensors", code=2)
    Path("bad.safetensors").write_bytes(before[:-1])
    assert "bad.safetensors: " in run("evaluate", "bad.safetensors", "t.csv", code=2)
    assert Path("m.safetensors").read_bytes() == before


# ---- fine-tuning


def digits_npz(path: str, keep: Callable[[Any], Any]) -> str:
    x, y = datasets.load_digits()
    rows = keep(y)
    np.savez(path, X=x[rows], y=y[rows])
    return path


def test_fine_tuning_on_new_classes(run: Run) -> None:
    low, high = digits_npz("low.npz", lambda y: y < 5), digits_npz("high.npz", lambda y: y >= 5)
    run("train", low, "--out", "low.safetensors", "--epochs", 5)
    start = sp.load("low.safetensors").model.named_parameters()
    text = run("train", high, "--from", "low.safetensors", "--freeze", 2, "--out", "high.safetensors", "--epochs", 20)
    assert "from           low.safetensors, with a new last layer" in text
    assert "64-256-128-5, ReLU, 50,181 parameters, float32, the first 2 frozen, 645 trained" in text
    assert float(re.search(r"^test accuracy +([\d.]+)%", text, re.M).group(1)) > 80  # type: ignore[union-attr]
    tuned = sp.load("high.safetensors").model.named_parameters()
    same = [name for name in start if np.array_equal(start[name], tuned[name])]
    assert same == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert "no training sample has the label 5" in run("evaluate", "low.safetensors", high, code=2)


def test_fine_tuning_on_the_same_classes_starts_from_all_layers(run: Run) -> None:
    run("train", "--hidden", "32", "--out", "m.safetensors", "--epochs", 10)
    text = run("train", "--from", "m.safetensors", "--lr", "1e-12", "--epochs", 1, "--out", "n.safetensors")
    assert "with all of its layers" in text
    np.testing.assert_allclose(weights("m.safetensors"), weights("n.safetensors"), atol=1e-6)
    assert "expected fewer than the model's 2 dense layers, got 2" in run(
        "train", "--from", "m.safetensors", "--freeze", 2, code=2
    )
    run("train", "--resume", "--out", "n.safetensors")
    np.savez("t.npz", X=np.zeros((50, 3)), y=np.arange(50) % 2)
    assert "expected samples of shape (64,), as the model had, got (3,)" in run(
        "train", "t.npz", "--from", "m.safetensors", code=2
    )


def test_fine_tuning_a_regression_keeps_its_units(run: Run) -> None:
    rows = trees()
    run("train", write("t.csv", rows), "--out", "m.safetensors", "--epochs", 40)
    text = run("train", write("u.csv", rows[:81]), "--from", "m.safetensors", "--lr", "1e-12", "--epochs", 1)
    assert "with all of its layers" in text
    assert float(re.search(r"^test R2 +(\S+)", text, re.M).group(1)) > 0.95  # type: ignore[union-attr]
    text = run("train", "u.csv", "--from", "m.safetensors", "--target", "height", "--task", "regression", *QUICK[2:])
    assert "regression" in text


# ---- evaluate and predict


@pytest.fixture
def model(run: Run) -> str:
    run("train", export("wine"), "--out", "m.safetensors", "--hidden", "8", "--epochs", "3")
    return "m.safetensors"


def test_evaluate_agrees_with_scikit_learn(run: Run, model: str) -> None:
    with open("wine.csv", newline="") as file:
        header, *rows = csv.reader(file)
    other = write("other.csv", [header, *rows[::2]])  # not what it was trained on: all of it counts
    scores = json.loads(run("evaluate", model, other, "--json"))
    assert (scores["task"], scores["part"], scores["samples"]) == ("classification", "all", 89)

    with open(write_out(run, model, other), newline="") as file:
        predictions = list(csv.DictReader(file))
    true, said = [row[-1] for row in rows[::2]], [row["label"] for row in predictions]
    p: Any = [[float(row[f"p({name})"]) for name in ("class_0", "class_1", "class_2")] for row in predictions]
    assert scores["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(true, said))
    p = np.array(p) / np.sum(p, axis=1, keepdims=True)  # written with six digits
    assert scores["log_loss"] == pytest.approx(sklearn.metrics.log_loss(true, p), rel=1e-4)
    assert scores["confusion_matrix"] == sklearn.metrics.confusion_matrix(true, said).tolist()
    report = sklearn.metrics.classification_report(true, said, output_dict=True, zero_division=0)
    for name, figures in {
        **scores["classes"],
        "macro avg": scores["macro"],
        "weighted avg": scores["weighted"],
    }.items():
        assert figures["precision"] == pytest.approx(report[name]["precision"])
        assert figures["recall"] == pytest.approx(report[name]["recall"])
        assert figures["f1"] == pytest.approx(report[name]["f1-score"])

    text = run("evaluate", model, other)
    assert labels(text)[:4] == ["model", "data", "accuracy", "log loss"]
    assert re.search(r"^class_0 +[\d.]+ +[\d.]+ +[\d.]+ +\d+$", text, re.M)
    assert "confusion matrix" in text


def write_out(run: Run, model: str, data: str) -> str:
    assert "p.csv, of other.csv, 89 samples" in run("predict", model, data, "--out", "p.csv")
    return "p.csv"


def test_evaluate_leaves_out_what_it_was_trained_on(run: Run, model: str) -> None:
    trained = run("train", "--resume", "--out", model)
    text = run("evaluate", model, "wine.csv")
    assert "wine.csv, of which the part that training held out, 36 samples" in text
    figures = re.search(r"^test accuracy  (.*)$", trained, re.M)
    assert figures is not None and f"accuracy       {figures.group(1)}" in text


def test_models_of_arrays(run: Run) -> None:
    x, y = datasets.load_digits()
    pixels = (x * 16).astype(np.uint8).reshape(-1, 8, 8)
    np.savez("parts.npz", x_train=pixels[:1000], y_train=y[:1000], x_test=pixels[1000:], y_test=y[1000:])
    text = run("train", "parts.npz", "--out", "m.safetensors", *QUICK)
    assert "8 x 8 features, 10 classes, divided by 16" in text
    scores = json.loads(run("evaluate", "m.safetensors", "parts.npz", "--json"))
    assert (scores["part"], scores["samples"]) == ("held out", 797)
    predicted = run("predict", "m.safetensors", "parts.npz")
    assert len(predicted.splitlines()) == 798
    np.savez("x.npz", x=pixels[1000:])
    assert run("predict", "m.safetensors", "x.npz") == predicted
    assert len(run("predict", "m.safetensors", "x.npz").splitlines()) == 798
    np.savez("z.npz", z=x)
    assert "expected the array X or x_test" in run("predict", "m.safetensors", "z.npz", code=2)
    np.savez("nan.npz", x=np.full((2, 8, 8), np.nan))
    assert "missing or infinite values, the first in sample 0" in run("predict", "m.safetensors", "nan.npz", code=2)


def test_predict_for_the_digits(run: Run) -> None:
    run("train", "--out", "m.safetensors", *QUICK)
    lines = run("predict", "m.safetensors", "digits").splitlines()
    assert lines[0] == "label," + ",".join(f"p({i})" for i in range(10))
    assert len(lines) == 1798
    assert sum(map(float, lines[1].split(",")[1:])) == pytest.approx(1, abs=1e-5)


# ---- files


def test_an_output_is_no_input_and_no_other_output(run: Run, model: str) -> None:
    os.link("wine.csv", "link.csv")
    Path("n.safetensors").write_bytes(Path(model).read_bytes())
    before = {name: Path(name).read_bytes() for name in os.listdir()}
    for command, message in {
        ("train", "wine.csv", "--log", "wine.csv"): "--log wine.csv: expected another name than DATA",
        ("train", "--data", "wine.csv", "--log", "./link.csv"): "--log ./link.csv: expected another name than DATA",
        ("train", "--out", "new.safetensors", "--log", "./new.safetensors"): "than --out",
        ("train", "--resume", "--out", model, "--log", "wine.csv"): "than DATA",
        ("predict", model, "wine.csv", "--out", model): "--out m.safetensors: expected another name than MODEL",
        ("predict", model, "wine.csv", "--out", "link.csv"): "than DATA",
        ("compress", model, "--quantize", "--out", model): "than MODEL",
    }.items():
        assert message in run(*command, code=2)
    assert {name: Path(name).read_bytes() for name in os.listdir()} == before


def test_a_full_disk_leaves_what_was_there(run: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before, saved = sorted(os.listdir()), sp.load(model).model
    monkeypatch.setattr(os, "fsync", full)
    assert run("predict", model, "wine.csv", "--out", "p.csv", code=2).endswith("p.csv: No space left on device\n")
    with pytest.raises(OSError, match="No space left") as caught:
        sp.save("p.safetensors", saved)
    assert str(caught.value) == f"[Errno {errno.ENOSPC}] No space left on device: 'p.safetensors'"
    assert sorted(os.listdir()) == before


def test_a_full_disk_leaves_plots_and_logs(run: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    pytest.importorskip("matplotlib")
    options = ("--out", "n.safetensors", "--log", "log.csv", "--plot", "p.png", "--schedule", "constant")
    run("train", "wine.csv", *options, *QUICK)
    before = {name: Path(name).read_bytes() for name in os.listdir()}
    monkeypatch.setattr(os, "fsync", full)
    for command, name in {
        ("evaluate", model, "wine.csv", "--plot", "p.png"): "p.png",
        ("train", "wine.csv", "--plot", "p.png", *QUICK): "p.png",
        ("train", "--resume", "--epochs", "3", "--out", "n.safetensors", "--log", "log.csv"): "log.csv",
    }.items():
        assert run(*command, code=2) == f"steepest: error: {name}: No space left on device\n"
    assert {name: Path(name).read_bytes() for name in os.listdir()} == before


def test_a_regression_refuses_targets_of_another_size(run: Run) -> None:
    x = np.arange(40.0)[:, None]
    np.savez("t.npz", x_train=x, y_train=x[:, 0] / 7, x_test=x, y_test=x[:, 0] * 1e300)
    assert "t.npz: y: the values are too large; scale them down" in run("train", "t.npz", *QUICK, code=2)


def test_the_next_command_keeps_the_same_model_in_a_new_file(run: Run, model: str) -> None:
    before, options = Path(model).read_bytes(), ("--epochs", "1", "--lr", "0.01", "--seed", "3", "--log", "a log.csv")
    os.rename(model, "model.safetensors")
    text = run("train", "--from", "model.safetensors", *options, "--", "wine.csv")
    command = re.search(r"^next +steepest (.+)    keep", text, re.M).group(1)  # type: ignore[union-attr]
    assert command == (
        "train --out model2.safetensors --from model.safetensors --epochs 1 --lr 0.01 --seed 3 --log 'a log.csv' "
        "-- wine.csv"
    )
    again = run(*shlex.split(command))
    assert re.findall("^(?:epoch|test).*", again, re.M) == re.findall("^(?:epoch|test).*", text, re.M)
    assert Path("model.safetensors").read_bytes() == before
    assert "model2.safetensors: 13-8-3, ReLU, 1 epoch, by" in run("evaluate", "model2.safetensors", "wine.csv")


def test_a_checkpoint_with_another_encoding(run: Run, model: str) -> None:
    sp.save("own.safetensors", sp.load(model).model, extra={"settings": 1, "encoding": {}, "fingerprint": 2, "last": 3})
    assert "encoding: expected what steepest train keeps, got {}" in run(
        "predict", "own.safetensors", "wine.csv", code=2
    )


# ---- plots


def test_plots(run: Run, model: str) -> None:
    pytest.importorskip("matplotlib")
    run("evaluate", model, "wine.csv", "--plot", "confusion.png")
    run("train", export("diabetes"), "--out", "d.safetensors", "--plot", "curve.png", *QUICK)
    run("evaluate", "d.safetensors", "diabetes.csv", "--plot", "values.svg")
    for name in ("confusion.png", "curve.png"):
        assert Path(name).read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in Path("values.svg").read_text()
    assert "expected a name that ends in one of ." in run("train", "--plot", "curve.docx", code=2)


def test_plots_without_matplotlib(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for command in (("train",), ("evaluate", "m.safetensors", "digits")):
        assert 'pip install "steepest[plot]"' in run(*command, "--plot", "x.png", code=2)
    assert not os.path.exists("x.png")
