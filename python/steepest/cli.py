"""The command line: `steepest train | tune | evaluate | predict | compress | export | verify | bench | info`.

Exit codes: 0 done; 1 a proof failed; 2 an error, said in one line on stderr; 130 Ctrl-C; 141 the
reader of the output went away.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import platform
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

import numpy as np

import steepest as sp
from steepest import _compress_command, _export_command
from steepest._model_commands import evaluate, predict
from steepest._proof import ProofError
from steepest._settings import ACTIVATIONS, OPTIMIZERS, SCHEDULES, number, whole_number
from steepest._train_command import line, train
from steepest._tune_command import tune


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    if sys.stdout is None:  # closed, as in `>&-`
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parser().parse_args(words, argparse.Namespace(words=words))
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The interpreter flushes stdout once more at exit, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ProofError as error:
        return _fail(str(error), 1)
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 2)
    except (FloatingPointError, ImportError, MemoryError, ValueError) as error:
        return _fail(str(error) or repr(error), 2)


def _fail(message: str, code: int) -> int:
    print(f"steepest: error: {' '.join(message.split())}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="steepest", description="The fastest optimizer step on a CPU, and exact.")
    parser.add_argument("--version", action="version", version=f"steepest {sp.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], summary: str) -> _Parser:
        added: _Parser = commands.add_parser(name, help=summary, description=run.__doc__)
        added.set_defaults(run=run)
        return added

    _add_train_options(command("train", train, "train a model and prove its steps exact"))
    _add_tune_options(command("tune", tune, "search for settings that train better"))
    sub = command("evaluate", evaluate, "test a trained model on data")
    _add_model_and_data(sub)
    sub.add_argument("--json", action="store_true", help="print one JSON object")
    sub.add_argument("--plot", help="draw the confusion matrix, or predicted over true values", metavar="FILE")
    sub = command("predict", predict, "apply a trained model to data")
    _add_model_and_data(sub)
    sub.add_argument("--out", help="where to (default: standard output)", metavar="FILE")
    _compress_command.add_options(command("compress", _compress_command.compress, "make a trained model smaller"))
    _export_command.add_options(command("export", _export_command.export, "write a model as ONNX"))
    sub = command("verify", verify, "compare every kernel with its NumPy formula, bit for bit")
    sub.add_argument("--quick", action="store_true", help="fewer combinations of options")
    sub = command("bench", bench, "time the kernels against NumPy on this machine")
    sub.add_argument("kernels", nargs="*", metavar="KERNEL", help="adamw, mse, ... (default: all)")
    sub.add_argument("--size", type=whole_number, action="append", metavar="N", help="elements; may be repeated")
    sub.add_argument("--quick", action="store_true", help="leave out what takes long")
    sub.add_argument("--all", action="store_true", help="every kernel at every size")
    command("info", info, "version, instruction sets, threads, compiler")
    return parser


def _add_model_and_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="what steepest train --out wrote", metavar="MODEL")
    parser.add_argument("data", help="as for steepest train", metavar="DATA")
    _add_header(parser)


def _add_header(parser: Any) -> None:
    header = "whether a CSV file's first row has the columns' names (default: judged by its words and numbers)"
    parser.add_argument("--header", action=argparse.BooleanOptionalAction, help=header)


def _adder(parser: argparse.ArgumentParser, title: str) -> Callable[..., None]:
    """A function that adds options to a new group: their name, help, and the rest."""
    group = parser.add_argument_group(title)
    return lambda name, text, **options: (group.add_argument(name, help=text, **options), None)[1]


def _add_train_options(parser: argparse.ArgumentParser) -> None:
    _add_settings(parser)
    add = _adder(parser, "beginnings")
    add("--from", "start from this trained model; a new last layer if the classes differ", metavar="MODEL")
    add("--freeze", "of that model, the first N dense layers stay as they are", type=whole_number, metavar="N")

    add = _adder(parser, "files")
    add("--out", "keep the model here, saved as training goes on", metavar="NAME.safetensors")
    resume = "go on with the run that --out is of, with its settings; only --epochs may be another"
    add("--resume", resume, action="store_true")
    add("--log", "write the figures of every epoch", metavar="FILE.csv")
    add("--plot", "draw the losses", metavar="FILE.png")


def _add_tune_options(parser: argparse.ArgumentParser) -> None:
    add = _adder(parser, "search")
    ways = "tree-structured Parzen estimators, random, or the combinations of a grid (default: bayes)"
    add("--search", ways, choices=("bayes", "random", "grid"), default="bayes")
    add(
        "--trials",
        "in all, those that the study has already included (default: 50); each of several processes may begin a last",
        type=whole_number,
        default=50,
    )
    add(
        "--storage",
        "keep the study here, to go on with or to share: sqlite:///study.db, postgresql://...",
        metavar="URL",
    )
    add("--study", "its name there (default: steepest)", metavar="NAME")
    silence = "a trial is run again when its process has given no sign of life for three times as long (default: 20)"
    add("--heartbeat", silence, type=whole_number, metavar="SECONDS")
    add("--out", "train with the best settings once more, and keep the model here", metavar="NAME.safetensors")
    add("--plot", "draw the history of the search, and what mattered", metavar="FILE.png")
    _add_settings(parser)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    add = _adder(parser, "data")
    sources = ".csv file, .npz file with X, y or x_train, y_train, ..., or folder of MNIST-format IDX files"
    add("source", f"{sources} (default: the embedded digits)", nargs="?", metavar="DATA")
    add("--data", "the same", metavar="DATA")
    add("--target", "a CSV file's column to predict (default: the last)", metavar="COLUMN")
    add("--ignore", "a CSV file's columns to leave out", type=_names, metavar="COLUMN[,...]")
    _add_header(parser)
    tasks = "(default: classification for strings and a few whole numbers, else regression)"
    add("--task", f"what to predict: a class or a number {tasks}", choices=("classification", "regression"))
    add("--validation-split", "of the samples (default: 0.1)", type=_fraction, metavar="FRACTION")

    add = _adder(parser, "model")
    add("--hidden", "widths of the hidden layers, or none (default: 256,128)", type=_widths, metavar="N[,N...]")
    add("--activation", "behind every hidden layer (default: relu)", choices=ACTIVATIONS)
    add("--dropout", "rate behind every hidden layer (default: 0)", type=_fraction, metavar="RATE")

    add = _adder(parser, "training")
    own = "(default: what suits the optimizer)"
    add("--optimizer", "default: adamw", choices=OPTIMIZERS)
    add("--lr", f"peak learning rate {own}", type=_positive, metavar="RATE")
    plans = "; ".join(f"{name}: {plan.words}" for name, plan in SCHEDULES.items() if plan.words)
    add("--schedule", f"of the learning rate (default: cosine). {plans}", choices=SCHEDULES)
    length = "when cosine, linear and one-cycle end (default: --epochs); a resumed run keeps to it"
    add("--schedule-epochs", length, type=whole_number, metavar="N")
    add("--epochs", "default: 40, or 10 from 10,000 samples up", type=whole_number, metavar="N")
    add("--batch-size", "default: 32", type=whole_number, metavar="N")
    stopping = "stop after N epochs without a smaller validation loss, with the best epoch's weights"
    add("--early-stopping", stopping, type=whole_number, metavar="N")
    add("--l1", "L1 penalty of weights, not biases (default: 0)", type=_not_negative, metavar="RATE")
    add("--weight-decay", f"of weights, not biases {own}", type=_not_negative, metavar="RATE")
    add("--state-dtype", "of the optimizer (default: float32)", choices=("float32", "bfloat16", "8bit"))
    weights = "balanced (rare classes count as much as frequent ones), or factors by label (default: 1)"
    add("--class-weight", weights, type=_class_weights, metavar="LABEL=FACTOR[,...]")
    seed = "of the split, the initial weights and the order of samples (default: 0)"
    add("--seed", seed, type=_seed, metavar="N")


_positive = partial(number, least=sys.float_info.min, most=sys.float_info.max, expected="a positive number")
_not_negative = partial(number, least=0, most=sys.float_info.max, expected="a number from 0 up")
_fraction = partial(number, least=0, most=math.nextafter(1, 0), expected="a number from 0 to below 1")
_seed = partial(whole_number, least=0)


def _widths(text: str) -> tuple[int, ...]:
    return () if text == "none" else tuple(map(whole_number, text.split(",")))


def _names(text: str) -> tuple[str, ...]:
    return tuple(next(csv.reader([text], skipinitialspace=True), []))


def _class_weights(text: str) -> str | dict[str, float]:
    if text == "balanced":
        return text
    pairs = [pair.rpartition("=") for pair in _names(text)]
    if not all(label and equals for label, equals, _ in pairs):
        raise argparse.ArgumentTypeError(f"expected balanced or LABEL=FACTOR, ..., got {text!r}")
    return {label: _not_negative(factor) for label, _, factor in pairs}


def info(args: argparse.Namespace) -> int:
    """Print what this build is made of and what it runs on."""
    build = sp._core.build_info()
    engines = "pool, openmp" if build["openmp"] else "pool; the compiler had no OpenMP"
    line("steepest", sp.__version__)
    line("isa", f"{build['isa']} (available: {', '.join(build['isas'])})")
    line("threads", f"{sp.get_num_threads()}")
    line("engine", f"{sp.get_threading()} (available: {engines})")
    line("compiler", build["compiler"])
    line("python", f"{platform.python_version()}, NumPy {np.__version__}, {platform.platform()}")
    return 0


def verify(args: argparse.Namespace) -> int:
    """Compare every kernel with its NumPy formula, bit for bit, on all that this machine has."""
    from steepest import verify

    return verify.run(quick=args.quick)


def bench(args: argparse.Namespace) -> int:
    """Time the kernels against their NumPy formulas on this machine."""
    from steepest import benchmarks

    return benchmarks.run(args.kernels or None, args.size, quick=args.quick, everything=args.all)
