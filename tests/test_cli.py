"""The command line: what it prints, and the exit code of everything that can go wrong."""

from __future__ import annotations

import importlib
import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import steepest as sp
from steepest import _settings, cli, datasets, reference

COMMAND = [sys.executable, "-m", "steepest"]
QUICK = ["train", "--epochs", "1", "--hidden", "16"]
COMPRESS = ["compress", "m.safetensors", "--out", "q.safetensors"]


def run(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *args], capture_output=True, text=True, env=os.environ | environment, timeout=120)


def labels(text: str) -> list[str]:
    return [line[:15].strip() for line in text.splitlines()]


def make_npz(path: Path, **changed: Any) -> Path:
    rng = np.random.default_rng(0)
    y = np.repeat([3, 5, 9], 40)
    x = rng.normal(size=(120, 4)) * [1, 10, 0.1, 0] + y[:, None] * [1, 0, 1, 0]
    np.savez(path, **({"X": x, "y": y} | changed))
    return path


# ---- train


def test_train_prints_everything_measured() -> None:
    done = run("train", "--epochs", "3")
    assert (done.returncode, done.stderr) == (0, "")
    text = done.stdout
    assert text.startswith(f"steepest {sp.__version__}, {sp._core.build_info()['isa']}, ")
    assert "1,797 samples of 64 features, 10 classes" in text
    assert "1,258 training, 180 validation, 359 test (drawn stratified, seed 0)" in text
    assert "64-256-128-10, ReLU, 50,826 parameters, float32" in text
    assert re.search(r"^optimizer +AdamW, learning rate .*; 3 epochs in batches of 32$", text, re.M)
    assert len(re.findall(r"^epoch \d/3 ", text, re.M)) == 3

    percent, right, total = re.search(r"^test accuracy  ([\d.]+)% \((\d+) of (\d+)\)$", text, re.M).groups()  # type: ignore[union-attr]
    assert percent == f"{100 * int(right) / int(total):.1f}"
    assert float(percent) > 90
    ours, theirs, ratio = map(
        float,
        re.search(
            r"^speed +AdamW step of this model ([\d.]+) us, NumPy's formula ([\d.]+) us: "
            r"([\d.]+) times as fast$",
            text,
            re.M,
        ).groups(),  # type: ignore[union-attr]
    )
    assert ratio == pytest.approx(theirs / ours, rel=0.05)
    assert "100 of its steps repeated with the NumPy reference" in text
    assert "all 50,826 weights identical, bit for bit" in text
    assert labels(text)[-6:] == ["test accuracy", "speed", "proof", "next", "", ""]


def test_train_is_the_same_for_any_number_of_threads() -> None:
    outputs = []
    for threads in ("1", "3"):
        lines = run(*QUICK, "--seed", "7", STEEPEST_NUM_THREADS=threads).stdout.splitlines()
        assert threads in lines[0]
        outputs.append([line for line in lines[1:] if not line.startswith("speed")])
    assert outputs[0] == outputs[1]
    assert any("seed 7" in line for line in outputs[0])


@pytest.mark.parametrize("rule", _settings.OPTIMIZERS)
def test_train_with_every_optimizer(rule: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--epochs=2", "--hidden=32", "--lr=0.01", "--weight-decay=0.01", "--batch-size=64"]
    assert cli.main(["train", "--optimizer", rule, *options]) == 0
    text = capsys.readouterr().out
    assert "64-32-10" in text
    assert "learning rate 0.01 " in text
    assert "weight decay 0.01; 2 epochs in batches of 64" in text
    assert "40 of its steps repeated with the NumPy reference" in text


def test_train_offers_every_optimizer() -> None:
    rules = {getattr(sp, name) for name in _settings.OPTIMIZERS.values()}
    assert rules == set(sp.Optimizer.__subclasses__())
    assert _settings.SUITED.keys() <= _settings.OPTIMIZERS.keys()


def test_train_on_an_npz(tmp_path: Path) -> None:
    path = make_npz(tmp_path / "data.npz")
    done = run("train", "--data", str(path), "--hidden", "none", "--epochs", "5")
    assert done.returncode == 0, done.stderr
    assert "120 samples of 4 features, 3 classes, standardised, 1 of them constant" in done.stdout
    assert "84 training, 12 validation, 24 test (drawn stratified, seed 0)" in done.stdout
    assert "4-3, 15 parameters" in done.stdout


def test_train_on_an_npz_in_parts_with_names_for_classes(tmp_path: Path) -> None:
    x, y = datasets.load_digits()
    names = np.array(["even", "odd"])[y % 2]
    path = tmp_path / "data.npz"
    parts = {"x_train": x[:900], "y_train": names[:900], "x_test": x[900:], "y_test": names[900:]}
    np.savez(path, **parts)
    done = run(*QUICK, "--data", str(path))
    assert done.returncode == 0, done.stderr
    assert "810 training, 90 validation, 897 test (validation drawn stratified" in done.stdout
    assert "64-16-2" in done.stdout
    np.savez(path, **parts, x_val=x[900:950], y_val=names[900:950])
    done = run(*QUICK, "--data", str(path))
    assert "900 training, 50 validation, 897 test (as given)" in done.stdout


def test_train_on_idx_files(tmp_path: Path) -> None:
    x, y = datasets.load_digits()
    images = (x * 255).astype(np.uint8).reshape(-1, 8, 8)
    for part, rows in (("train", slice(1000)), ("t10k", slice(1000, None))):
        for kind, array in (("images-idx3", images[rows]), ("labels-idx1", y[rows].astype("u1"))):
            header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (tmp_path / f"{part}-{kind}-ubyte").write_bytes(header + array.tobytes())
    done = run(*QUICK, "--data", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "1,797 samples of 8 x 8 features, 10 classes, divided by 255" in done.stdout
    assert "900 training, 100 validation, 797 test (validation drawn stratified" in done.stdout


@pytest.mark.slow
def test_train_reaches_its_accuracy_on_the_digits(capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(10):
        assert cli.main(["train", "--seed", str(seed)]) == 0
    found = re.findall(r"^test accuracy  [\d.]+% \((\d+) of (\d+)\)$", capsys.readouterr().out, re.M)
    assert len(found) == 10
    assert np.mean([int(right) / int(total) for right, total in found]) >= 0.975


def test_train_finds_a_wrong_bit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    exact = reference.RULES["AdamW"]

    def wrong(p: Any, g: Any, state: Any, t: int, **options: Any) -> Any:
        p, state = exact(p, g, state, t, **options)
        if t == 5:
            p[0] = np.nextafter(p[0], np.float32(1))
        return p, state

    monkeypatch.setitem(reference.RULES, "AdamW", wrong)
    assert cli.main(QUICK) == 1
    assert "after step 5, 2 of 1,210 weights differ" in capsys.readouterr().err


# ---- errors


def refused(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("steepest")
    assert done.stderr.count("\n") == 1
    assert re.search(message, done.stderr), done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["train", "--lr", "0"], "--lr: expected a positive number, got '0'"),
        (["train", "--lr", "nan"], "--lr: expected a positive number, got 'nan'"),
        (["train", "--lr", "fast"], "--lr: expected a positive number, got 'fast'"),
        (["train", "--epochs", "0"], "--epochs: expected a whole number from 1 up, got '0'"),
        (["train", "--batch-size", "2.5"], "--batch-size: expected a whole number"),
        (["train", "--hidden", "128,"], "--hidden: expected a whole number from 1 up, got ''"),
        (["train", "--seed", "-1"], "--seed: expected a whole number from 0 up, got '-1'"),
        (["train", "--weight-decay", "-1"], "--weight-decay: expected a number from 0 up"),
        (["train", "--optimizer", "best"], "invalid choice: 'best'"),
        (["train", "--data", "nowhere"], "nowhere: no such file or folder"),
        (["train", "--data", "."], "no train-images-idx3-ubyte"),
        (["train", "--data", __file__], "expected a .csv or .npz file or a folder of MNIST-format IDX files"),
        (["train", "--dropout", "1"], "--dropout: expected a number from 0 to below 1, got '1'"),
        (["train", "--class-weight", "cat"], "--class-weight: expected balanced or LABEL=FACTOR"),
        (["train", "--freeze", "1"], "--freeze: only the layers of a trained model"),
        (["train", "--resume"], "--resume: name the model to go on with"),
        (["train", "--resume", "--out", "m.safetensors", "--from", "m.safetensors"], "leave --from out"),
        (["train", "--resume", "--out", "m.safetensors"], "m.safetensors: No such file"),
        (["train", "--from", "m.safetensors", "--hidden", "9"], "--hidden: the layers are those of --from"),
        (["train", "--out", "data.csv"], "--out data.csv: expected a name that ends in .safetensors"),
        (["train", "--out", "no/m.safetensors"], "expected a file in a folder that can be written to"),
        (["train", "--log", "."], "--log .: expected a file"),
        (["train", "digits", "--data", "digits"], "expected DATA or --data DATA, got both"),
        (["train", "--target", "y"], "--target is for tables"),
        (["train", "--early-stopping", "2", "--validation-split", "0"], "--early-stopping needs validation data"),
        (["train", "--schedule", "plateau", "--validation-split", "0"], "plateau needs validation data"),
        (["evaluate", "m.safetensors", "digits"], "m.safetensors: No such file"),
        ([*COMPRESS, "--prune", "l2", "--amount", "1.1"], "--amount: expected a fraction from 0 to 1, got '1.1'"),
        ([*COMPRESS, "--prune", "l2", "--epochs", "-1"], "--epochs: expected a whole number from 0 up, got '-1'"),
        ([*COMPRESS, "--quantize", "--percentile", "50"], "--percentile: expected a number above 50, up to 100, got"),
        ([*COMPRESS, "--quantize", "--samples", "0"], "--samples: expected a whole number from 1 up, got '0'"),
        ([*COMPRESS, "--quantize", "--amount", "0"], "--amount is for --prune, which is not given"),
        ([*COMPRESS, "--quantize", "--units"], "--units is for --prune, which is not given"),
        ([*COMPRESS, "--prune", "l2", "--bits", "8"], "--bits is for --quantize, which is not given"),
        ([*COMPRESS, "--quantize", "dynamic", "--samples", "9"], "--samples is for --quantize static"),
        ([*COMPRESS, "--quantize", "dynamic", "--percentile", "100"], "--percentile is for --quantize static"),
    ],
)
def test_wrong_arguments(
    args: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = cli.main(args)
    except SystemExit as refusal:  # argparse's
        code = int(str(refusal.code))
    err = capsys.readouterr().err
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("steepest")
    assert message in err


Y = np.repeat([3, 5, 9], 40)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"X": np.full((120, 4), np.nan)},
            r"training: 480 missing or infinite values, .* sample 0",
        ),
        ({"y": np.full(120, np.nan)}, "training: 120 missing or infinite targets"),
        ({"y": np.ones(120)}, "all labels are 1; expected at least two classes"),
        ({"y": np.eye(120)}, r"expected one label per sample, got labels of shape \(120, 120\)"),
        ({"y": np.repeat([1.0, 2.0, 1e300], 40)}, r"y: expected class labels .* \(below 2\*\*53\), got 1e\+300"),
        ({"y": Y[:-1]}, "120 samples in x, but 119 in y"),
        ({"y": Y.astype(object)}, "Python objects"),
    ],
)
def test_unusable_data(
    tmp_path: Path, changed: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_npz(tmp_path / "data.npz", **changed)
    assert cli.main(["train", "--data", str(path)]) == 2
    out, err = capsys.readouterr()
    assert re.search(message, err), err
    assert err.startswith("steepest: error: ")
    assert err.count("\n") == out.count("\n") == 1


def test_a_test_label_that_training_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "data.npz"
    x = np.zeros((120, 2))
    np.savez(path, x_train=x, y_train=Y, x_test=x, y_test=Y + 1)
    assert cli.main(["train", "--data", str(path)]) == 2
    assert "no training sample has the label 4" in capsys.readouterr().err


def test_a_diverging_run_is_one_line() -> None:
    done = run(*QUICK, "--optimizer", "sgd", "--lr", "1e30")
    refused(done, "epoch 1, batch")
    assert done.stderr.endswith("; expected a smaller --lr, got 1e+30\n")


def test_a_truncated_file_is_one_line(tmp_path: Path) -> None:
    path = make_npz(tmp_path / "data.npz")
    path.write_bytes(path.read_bytes()[:-30])
    refused(run("train", "--data", str(path)), "data.npz")


@pytest.mark.parametrize(("name", "value"), [("STEEPEST_ISA", "mmx"), ("STEEPEST_NUM_THREADS", "some")])
def test_a_wrong_setting_of_the_environment(name: str, value: str) -> None:
    done = run("info", **{name: value})  # the package refuses it as it is imported: an error, not a crash
    assert done.returncode in (1, 2)
    assert re.search(f"{name}: .*{value}", done.stderr.splitlines()[-1])


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_is_quiet() -> None:
    process = subprocess.Popen(
        [*COMMAND, "train", "--epochs", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while not process.stdout.readline().startswith("epoch"):
        pass
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes")
def test_a_reader_that_goes_away() -> None:
    process = subprocess.Popen(
        [*COMMAND, "train", "--epochs", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert (process.wait(timeout=60), process.stderr.read()) == (141, "")
    process.stderr.close()


# ---- the other commands


def test_info() -> None:
    done = run("info", STEEPEST_NUM_THREADS="3")
    assert (done.returncode, done.stderr) == (0, "")
    assert labels(done.stdout) == ["steepest", "isa", "threads", "engine", "compiler", "python"]
    build = sp._core.build_info()
    assert ", ".join(build["isas"]) in done.stdout
    assert build["compiler"] in done.stdout
    assert re.search(r"^threads +3$", done.stdout, re.M)
    assert ("openmp" in done.stdout) == build["openmp"]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX shell")
def test_a_closed_output() -> None:
    done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, "info"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_version_and_help() -> None:
    assert run("--version").stdout == f"steepest {sp.__version__}\n"
    done = run("--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("train", "evaluate", "predict", "verify", "bench", "info"))


@pytest.mark.parametrize("code", [0, 1])
@pytest.mark.parametrize(
    ("module", "command", "arguments", "options"),
    [
        ("verify", "verify", (), {"quick": False}),
        ("verify", "verify --quick", (), {"quick": True}),
        ("benchmarks", "bench", (None, None), {"quick": False, "everything": False}),
        ("benchmarks", "bench --all", (None, None), {"quick": False, "everything": True}),
        (
            "benchmarks",
            "bench adam mse --size 10 --size 20 --quick",
            (["adam", "mse"], [10, 20]),
            {"quick": True, "everything": False},
        ),
    ],
)
def test_verify_and_bench_hand_over(
    module: str, command: str, arguments: Any, options: Any, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*given: Any, **more: Any) -> int:
        assert (given, more) == (arguments, options)
        return code

    monkeypatch.setattr(importlib.import_module(f"steepest.{module}"), "run", run)
    assert cli.main(command.split()) == code


def test_bench_prints_a_line() -> None:
    done = run("bench", "sgd", "--size", "1000", "--quick")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^sgd +1,000 ", done.stdout, re.M)
    refused(run("bench", "fastest"), "expected some of .*sgd.*, got fastest")
