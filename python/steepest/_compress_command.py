"""`steepest compress`."""

from __future__ import annotations

import argparse
import copy
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steepest import compress as ways
from steepest import losses, metrics, optim, schedules
from steepest._encoding import Encoding
from steepest._model_commands import outputs_of
from steepest._settings import counted, number, whole_number
from steepest._task import Task, load_task
from steepest._train_command import SUFFIX, check_writable, describe_file, line, open_model
from steepest.nn import Sequential
from steepest.train import Trainer

Array = NDArray[Any]
ROWS = 32  # trained on at a time
BATCH = 256  # samples predicted at a time when time is taken
REPEATS = 30


class Way(NamedTuple):
    """A way to make a model smaller: the option that asks for it, those that only count then, and what it does.

    `apply(model, task, args)` gives the smaller model, and what to say of it; the task's test part is
    none of its business. A row of the table has its name.
    """

    name: str
    option: str
    others: tuple[str, ...]
    add_options: Callable[[Any], None]
    apply: Callable[[Sequential, Task, argparse.Namespace], tuple[Sequential, str]]


def _add_quantization(group: Any) -> None:
    text = "int8 weights, integer arithmetic; ranges of inputs from training data, or anew for every batch"
    group.add_argument("--quantize", nargs="?", const="static", choices=("static", "dynamic"), help=text)
    group.add_argument("--bits", type=int, choices=(8, 7, 1), help="of a weight (default: 8; 1: its sign)")
    text = "of a layer's inputs that static ranges hold, from either end (default: 100)"
    percentile = partial(number, least=math.nextafter(50, 100), most=100, expected="a number above 50, up to 100")
    group.add_argument("--percentile", type=percentile, help=text, metavar="P")
    text = "training samples that static ranges are taken from (default: 1000)"
    group.add_argument("--samples", type=whole_number, help=text, metavar="N")


def _quantize(model: Sequential, task: Task, args: argparse.Namespace) -> tuple[Sequential, str]:
    x = task.train[0]
    picked = np.random.default_rng(0).permutation(len(x))[: args.samples or 1000]
    calibration = x[np.sort(picked)] if args.quantize == "static" else None
    small = ways.quantize(model, calibration, percentile=args.percentile or 100, bits=args.bits or 8)
    how = f", calibrated with {counted(len(picked), 'training sample')}" if calibration is not None else ""
    return small, f"{small.kind}{how}"


def _add_pruning(group: Any) -> None:
    text = "zero the least weights (magnitude), or any: the baseline"
    group.add_argument("--prune", choices=("magnitude", "l2", "random"), help=text)
    amount = partial(number, least=0, most=1, expected="a fraction from 0 to 1")
    group.add_argument("--amount", type=amount, help="how much of it (default: 0.8)", metavar="FRACTION")
    text = "of what the amount is (default: global, all layers together; with --units, each layer)"
    group.add_argument("--scope", choices=("layer", "global"), help=text)
    text = "whole neurons, by the norm of their weights, which are then cut out"
    group.add_argument("--units", action="store_true", default=None, help=text)
    text = "to train on for, pruning weights gradually in the first half (default: 0)"
    group.add_argument("--epochs", type=partial(whole_number, least=0), help=text, metavar="N")


def _prune(model: Sequential, task: Task, args: argparse.Namespace) -> tuple[Sequential, str]:
    x, y = task.train
    epochs, asked = args.epochs or 0, 0.8 if args.amount is None else args.amount
    steps = epochs * -(-len(x) // ROWS)
    model, amount = copy.deepcopy(model), asked
    model.freeze(0)
    if steps and not args.units and 0 < amount <= 1:
        amount = ways.cubic(amount, steps=max(1, steps // 2))
    try:
        pruning = ways.prune(
            model, amount, method=args.prune, scope=args.scope, structured=bool(args.units), every=max(1, steps // 50)
        )
    except ValueError as error:  # of the amount, which left a layer no unit
        raise ValueError(f"--{error}") from None
    if steps:
        loss = losses.softmax_cross_entropy if task.encoding.labelled else losses.mse
        optimizer = optim.Adam(model.param_groups(), lr=schedules.cosine(1e-3, steps=steps))
        Trainer(model, loss, optimizer).fit(x, y, batch_size=ROWS, epochs=epochs, callbacks=[pruning])
    pruning.remove()
    kind = f"{asked:.4g} of the {'units' if args.units else 'weights'}, {args.prune}"
    note = f"{kind}, {pruning.sparsity:.1%} zeros; trained on for {counted(epochs, 'epoch')}"
    return ways.shrink(model) if args.units else model, note


WAYS = (
    Way("pruned", "prune", ("amount", "scope", "units", "epochs"), _add_pruning, _prune),
    Way("quantised", "quantize", ("bits", "percentile", "samples"), _add_quantization, _quantize),
)
"""In the order in which they are applied."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of `steepest compress`."""
    parser.add_argument("model", help="what steepest train --out wrote", metavar="MODEL")
    text = "what it was trained on (default: where that was then); the test part is held out"
    parser.add_argument("data", nargs="?", help=text, metavar="DATA")
    parser.add_argument("--out", required=True, help="where to", metavar="NAME.safetensors")
    group = parser.add_argument_group("how (one or several)")
    for way in WAYS:
        way.add_options(group)


def compress(args: argparse.Namespace) -> int:
    """Make a trained model smaller, and compare it with what it was: size, score, time."""
    asked = [way for way in WAYS if getattr(args, way.option) is not None]
    if not asked:
        raise ValueError("expected at least one way to make it smaller, such as --quantize")
    for way in WAYS:
        given = [option for option in way.others if getattr(args, option) is not None]
        if given and way not in asked:
            raise ValueError(f"--{given[0]} is for --{way.option}, which is not given")
    for option in ("percentile", "samples"):
        if args.quantize == "dynamic" and getattr(args, option) is not None:
            raise ValueError(f"--{option} is for --quantize static; the dynamic ranges are each batch's own")
    if not args.out.endswith(SUFFIX):
        raise ValueError(f"--out {args.out}: expected a name that ends in {SUFFIX}")
    check_writable("--out", args.out, {"MODEL": args.model, "DATA": args.data})
    saved = open_model(args.model)
    settings = {**saved.extra["settings"], "from": None}
    task = load_task({**settings, "data": args.data or settings["data"]}, Encoding.of_document(saved.extra["encoding"]))
    keep = partial(ways.save, history=saved.history, extra={**saved.extra, "last": None})
    line("model", describe_file(args.model, saved))
    line("data", task.data)

    model, rows = saved.model, [_row("as it was", saved.model, task, keep)]
    for way in asked:
        model, note = way.apply(model, task, args)
        line(way.name, note)
        rows.append(_row(way.name, model, task, keep))
    _print_table(rows)
    keep(args.out, model)
    line("saved", args.out)
    return 0


def _row(name: str, model: Sequential, task: Task, keep: Callable[[str, Sequential], None]) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        keep(f"{folder}/model{SUFFIX}", model)
        size = os.path.getsize(f"{folder}/model{SUFFIX}")
    x, y = task.test
    outputs = outputs_of(model, x)
    if task.encoding.labelled:
        score = "accuracy", f"{metrics.accuracy(y, outputs.argmax(-1)):.2%}"
    else:
        values = task.encoding.values
        score = "RMSE", f"{metrics.rmse(values(y.reshape(-1, 1)), values(outputs)):.6g}"
    batch, one = np.resize(x, (BATCH, *x.shape[1:])), x[:1]
    times = {f"{len(rows)} sample{'s' * (len(rows) > 1)}": _time(model, rows) for rows in (batch, one)}
    return {"": name, "bytes": f"{size:,}", score[0]: score[1], **times}


def _time(model: Sequential, x: Array) -> str:
    """The quickest of several predictions, in microseconds."""
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        model.forward(x)
        best = min(best, time.perf_counter() - start)
    return f"{1e6 * best:.0f} us"


def _print_table(rows: Sequence[Mapping[str, str]]) -> None:
    print()
    for row in ({name: name for name in rows[0]}, *rows):
        first, *rest = row.values()
        print(f"{first:<15}" + "".join(f"{cell:>13}" for cell in rest))
    print(flush=True)
