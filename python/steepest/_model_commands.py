"""`steepest evaluate` and `steepest predict`."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import sys
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from steepest import _storage, compress, metrics
from steepest._encoding import Encoding
from steepest._settings import counted
from steepest._task import draw, prepared, read, read_inputs
from steepest._train_command import check_plot, check_writable, describe_file, line, new_axes, open_model, save_plot
from steepest.checkpoint import Checkpoint
from steepest.datasets import Pair
from steepest.nn import Sequential

Array = NDArray[Any]
ROWS = 1024  # predicted at a time
PARTS = {"held out": ", of which the part that training held out", "test": ", its test part", "all": ""}
PER_CLASS = (metrics.precision, metrics.recall, metrics.f1)


def evaluate(args: argparse.Namespace) -> int:
    """Test a model on data: of those that it was trained on, only on the test part."""
    if args.plot:
        check_plot(args.plot, {"MODEL": args.model, "DATA": args.data})
    saved = open_model(args.model, compress.load)
    encoding = Encoding.of_document(saved.extra["encoding"])
    data, part, (x, y) = _test_part(args, saved, encoding)
    targets = encoding.targets(data, y)
    outputs = outputs_of(saved.model, encoding.inputs(data, x))
    scores: dict[str, Any] = {"task": encoding.task, "part": part, "samples": len(y)}
    if encoding.classes is None:
        true, predicted = y, encoding.values(outputs)
        scores |= {f.__name__: f(true, predicted) for f in (metrics.r2, metrics.rmse, metrics.mae, metrics.mse)}
    else:
        true, predicted = targets, outputs.argmax(-1)
        scores |= _classification(true, predicted, _probabilities(outputs), encoding.classes)

    if args.json:
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in scores.items()}
        print(json.dumps({"model": args.model, "data": data, **plain}))
    else:
        line("model", describe_file(args.model, saved))
        line("data", f"{data}{PARTS[part]}, {counted(len(y), 'sample')}")
        (_print_regression if encoding.classes is None else _print_classification)(scores)
    if args.plot:
        ax = new_axes()
        if encoding.classes is None:
            _draw_values(ax, encoding.target, true, predicted)
        else:
            _draw_matrix(ax, encoding.target, scores)
        save_plot(ax, args.plot)
    return 0


def predict(args: argparse.Namespace) -> int:
    """Write what a model says of every sample, as CSV: label and probabilities, or value."""
    if args.out:
        check_writable("--out", args.out, {"MODEL": args.model, "DATA": args.data})
    saved = open_model(args.model, compress.load)
    encoding = Encoding.of_document(saved.extra["encoding"])
    data, x = read_inputs(args.data, encoding.columns, args.header)
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        sample = np.argwhere(~np.isfinite(x))[0][0]
        raise ValueError(f"{data}: missing or infinite values, the first in sample {sample}")
    outputs = outputs_of(saved.model, encoding.inputs(data, x))
    if not args.out:
        _write(sys.stdout, outputs, encoding)
        return 0
    text = io.StringIO()
    _write(text, outputs, encoding)
    _storage.replace(args.out, (memoryview(text.getvalue().encode()),))
    line("predictions", f"{args.out}, of {data}, {counted(len(x), 'sample')}")
    return 0


def _test_part(args: argparse.Namespace, saved: Checkpoint, encoding: Encoding) -> tuple[str, str, Pair]:
    """The data's name, which part of them to test on, and its samples and targets."""
    data = read(args.data, encoding.columns, args.header, encoding.worded)
    splits, _ = prepared(data, encoding.task)
    if data.fingerprint() == saved.extra["fingerprint"]:
        splits, _ = draw(splits, saved.extra["settings"])
        assert splits.test is not None
        return data.name, "held out", splits.test
    return (data.name, "test", splits.test) if splits.test else (data.name, "all", splits.train)


def outputs_of(model: Sequential, x: Array) -> Array:
    """The model's outputs, some rows at a time; ValueError if one is not finite."""
    outputs = np.empty((len(x), *model.output_shape), model.dtype)
    for start in range(0, len(x), ROWS):
        outputs[start : start + ROWS] = model.forward(x[start : start + ROWS])
    if not np.isfinite(outputs).all():
        raise ValueError("the model gives values that are not finite; are the features of another scale?")
    return outputs


def _probabilities(outputs: Array) -> Array:
    p = np.exp(outputs.astype(np.float64) - outputs.max(-1, keepdims=True))
    return np.asarray(p / p.sum(-1, keepdims=True))


def _classification(true: Array, predicted: Array, p: Array, classes: Array) -> dict[str, Any]:
    labels = range(len(classes))
    per_class = {
        str(label): {
            **{f.__name__: f(true, predicted, labels=[i], average="macro") for f in PER_CLASS},
            "samples": int(np.count_nonzero(true == i)),
        }
        for i, label in enumerate(classes)
    }
    return {
        "accuracy": metrics.accuracy(true, predicted),
        "log_loss": metrics.log_loss(true, p, labels=labels),
        "classes": per_class,
        "macro": {f.__name__: f(true, predicted, labels=labels, average="macro") for f in PER_CLASS},
        "weighted": {f.__name__: f(true, predicted, labels=labels, average="weighted") for f in PER_CLASS},
        "confusion_matrix": metrics.confusion_matrix(true, predicted, labels=labels).tolist(),
    }


def _print_classification(scores: dict[str, Any]) -> None:
    matrix = np.array(scores["confusion_matrix"])
    line("accuracy", f"{scores['accuracy']:.1%} ({np.trace(matrix):,} of {matrix.sum():,})")
    line("log loss", f"{scores['log_loss']:.4g}")
    print()
    names = [*scores["classes"], "macro average", "weighted average"]
    wide = max(map(len, names))
    print(f"{'':<{wide}}  precision  recall     f1  samples")
    for name, row in zip(names, [*scores["classes"].values(), scores["macro"], scores["weighted"]], strict=True):
        samples = row.get("samples", scores["samples"])
        print(f"{name:<{wide}}{row['precision']:11.3f}{row['recall']:8.3f}{row['f1']:7.3f}{samples:9,}")
    print("\nconfusion matrix (rows: true; columns, in the same order: predicted)")
    digits = len(str(matrix.max()))
    for name, row in zip(scores["classes"], matrix, strict=True):
        print(f"{name:<{wide}}  " + " ".join(f"{n:>{digits}}" for n in row))


def _print_regression(scores: dict[str, Any]) -> None:
    for name, label in (("r2", "R2"), ("rmse", "RMSE"), ("mae", "MAE"), ("mse", "MSE")):
        line(label, f"{scores[name]:.6g}")


def _draw_matrix(ax: Any, target: str, scores: dict[str, Any]) -> None:
    matrix, names = np.array(scores["confusion_matrix"]), list(scores["classes"])
    ax.figure.colorbar(ax.imshow(matrix, cmap="Blues"))
    ticks = range(len(names))
    ax.set_xticks(ticks, names, rotation=90)
    ax.set_yticks(ticks, names)
    ax.set_xlabel("predicted")
    ax.set_ylabel(target)
    if len(names) <= 20:
        for (i, j), n in np.ndenumerate(matrix):
            color = "white" if 2 * n > matrix.max() else "black"
            ax.text(j, i, str(n), ha="center", va="center", color=color)


def _draw_values(ax: Any, target: str, true: Array, predicted: Array) -> None:
    ax.scatter(true, predicted, s=8)
    ax.axline((true.min(), true.min()), slope=1, color="gray", linewidth=1)
    ax.set_xlabel(target)
    ax.set_ylabel("predicted")


def _write(file: TextIO, outputs: Array, encoding: Encoding) -> None:
    writer = csv.writer(file, lineterminator="\n")
    if encoding.classes is None:
        writer.writerow(["value"])
        writer.writerows([f"{value:.8g}"] for value in encoding.values(outputs))
        return
    writer.writerow(["label", *(f"p({label})" for label in encoding.classes)])
    for row, best in zip(_probabilities(outputs), outputs.argmax(-1), strict=True):
        writer.writerow([encoding.classes[best], *(f"{p:.6g}" for p in row)])
