"""The command line: `steepest train | verify | bench | info`.

Exit codes: 0 done; 1 a proof failed; 2 an error, said in one line on stderr; 130 Ctrl-C; 141 the
reader of the output went away.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

import numpy as np

import steepest as sp
from steepest import metrics, nn, reference, schedules
from steepest._proof import Proof, ProofError, time_step
from steepest._task import Task, load_task
from steepest.train import Trainer


class Settings(NamedTuple):
    """What `steepest train` gives an optimizer unless told otherwise; None: the optimizer's own default."""

    lr: float | None = None
    weight_decay: float | None = None
    options: Mapping[str, float] = MappingProxyType({})


OPTIMIZERS = {name.lower(): name for name in reference.RULES}

# Chosen on the validation parts of the digits and, for AdamW, of Fashion-MNIST; never on a test set.
SETTINGS = {
    "sgd": Settings(0.1, options={"momentum": 0.9}),
    "momentum": Settings(1.0),
    "rmsprop": Settings(2e-3),
    "adagrad": Settings(5e-2),
    "adam": Settings(3e-3),
    "adamw": Settings(3e-3, weight_decay=0.1),
    "nadam": Settings(3e-3),
    "lion": Settings(5e-4, weight_decay=0.1),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        args = _parser().parse_args(argv)
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

    _add_train_options(command("train", train, "train a classifier and prove its steps exact"))
    sub = command("verify", verify, "compare every kernel with its NumPy formula, bit for bit")
    sub.add_argument("--quick", action="store_true", help="fewer combinations of options")
    sub = command("bench", bench, "time the kernels against NumPy on this machine")
    sub.add_argument("kernels", nargs="*", metavar="KERNEL", help="adamw, mse, ... (default: all)")
    sub.add_argument("--size", type=_count, action="append", metavar="N", help="elements; may be repeated")
    sub.add_argument("--quick", action="store_true", help="leave out what takes long")
    sub.add_argument("--all", action="store_true", help="every kernel at every size")
    command("info", info, "version, instruction sets, threads, compiler")
    return parser


def _add_train_options(parser: argparse.ArgumentParser) -> None:
    def add(name: str, text: str, **options: Any) -> None:
        parser.add_argument(name, help=text, **options)

    sources = "folder of MNIST-format IDX files, or .npz file with X, y or x_train, y_train, ..."
    add("--data", f"{sources} (default: the embedded digits)", metavar="PATH")
    add("--optimizer", "default: %(default)s", choices=OPTIMIZERS, default="adamw")
    own = "(default: what suits the optimizer)"
    add("--lr", f"peak learning rate {own}", type=_positive, metavar="RATE")
    add("--weight-decay", f"of weights, not biases {own}", type=_not_negative, metavar="RATE")
    widths = "widths of the hidden layers, or none (default: 256,128)"
    add("--hidden", widths, type=_widths, default=(256, 128), metavar="N[,N...]")
    add("--epochs", "default: 40, or 10 from 10,000 samples up", type=_count, metavar="N")
    add("--batch-size", "default: %(default)s", type=_count, default=32, metavar="N")
    seed = "of the split, the initial weights and the order of samples (default: %(default)s)"
    add("--seed", seed, type=_seed, default=0, metavar="N")


def _number(text: str, least: float, expected: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return value


def _positive(text: str) -> float:
    return _number(text, sys.float_info.min, "a positive number")


def _not_negative(text: str) -> float:
    return _number(text, 0, "a number from 0 up")


def _count(text: str, least: int = 1) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number from {least} up, got {text!r}")
    return int(text)


def _seed(text: str) -> int:
    return _count(text, 0)


def _widths(text: str) -> tuple[int, ...]:
    return () if text == "none" else tuple(map(_count, text.split(",")))


def info(args: argparse.Namespace) -> int:
    """Print what this build is made of and what it runs on."""
    build = sp._core.build_info()
    engines = "pool, openmp" if build["openmp"] else "pool; the compiler had no OpenMP"
    _line("steepest", sp.__version__)
    _line("isa", f"{build['isa']} (available: {', '.join(build['isas'])})")
    _line("threads", f"{sp.get_num_threads()}")
    _line("engine", f"{sp.get_threading()} (available: {engines})")
    _line("compiler", build["compiler"])
    _line("python", f"{platform.python_version()}, NumPy {np.__version__}, {platform.platform()}")
    return 0


def verify(args: argparse.Namespace) -> int:
    """Compare every kernel with its NumPy formula, bit for bit, on all that this machine has."""
    from steepest import verify

    return verify.run(quick=args.quick)


def bench(args: argparse.Namespace) -> int:
    """Time the kernels against their NumPy formulas on this machine."""
    from steepest import benchmarks

    return benchmarks.run(args.kernels or None, args.size, quick=args.quick, everything=args.all)


def train(args: argparse.Namespace) -> int:
    """Train a classifier and test it; time its optimizer's step; prove its steps exact."""
    isa, threads = sp._core.build_info()["isa"], sp.get_num_threads()
    print(f"steepest {sp.__version__}, {isa}, {threads} thread{'s' * (threads != 1)}", flush=True)
    task = load_task(args.data, args.seed)
    _line("data", task.data)
    _line("split", task.split)
    model = _model(args, task)
    optimizer, epochs = _optimizer(args, task, model)

    proof = Proof()
    trainer = Trainer(model, sp.losses.softmax_cross_entropy, optimizer, [metrics.accuracy])
    with np.errstate(over="ignore", invalid="ignore"):  # the trainer names a loss that is not finite
        history = trainer.fit(
            *task.train,
            batch_size=args.batch_size,
            epochs=epochs,
            validation_data=task.validation,
            seed=args.seed,
            callbacks=[proof],
        )
    if history.interrupted:
        raise KeyboardInterrupt

    x, y = task.test
    right = int(np.count_nonzero(trainer.predict(x).argmax(-1) == y))
    _line("test accuracy", f"{right / len(y):.1%} ({right:,} of {len(y):,})")
    ours, theirs = time_step(optimizer, model.gradients())
    step = f"{OPTIMIZERS[args.optimizer]} step of this model"
    _line("speed", f"{step} {ours:.1f} us, NumPy's formula {theirs:.1f} us: {theirs / ours:.1f} times as fast")
    _line("proof", proof.result())
    _line("next", "steepest verify    compare every kernel with its NumPy formula, bit for bit")
    _line("", "steepest bench     time the kernels on this machine")
    _line("", "steepest train --optimizer lion --hidden 128    (see steepest train --help)")
    return 0


def _model(args: argparse.Namespace, task: Task) -> nn.Sequential:
    features = task.train[0].shape[1]
    hidden = [layer for n in args.hidden for layer in (nn.Dense(n), nn.ReLU())]
    model = nn.Sequential([*hidden, nn.Dense(task.classes)], features, seed=args.seed)
    sizes = "-".join(map(str, (features, *args.hidden, task.classes)))
    relu = ", ReLU" if hidden else ""
    _line("model", f"{sizes}{relu}, {model.params.size:,} parameters, float32")
    return model


def _optimizer(args: argparse.Namespace, task: Task, model: nn.Sequential) -> tuple[sp.Optimizer, int]:
    """The optimizer, with its schedule for the epochs; and those."""
    samples = len(task.train[1])
    epochs = args.epochs or (40 if samples < 10_000 else 10)
    own = SETTINGS.get(args.optimizer, Settings())
    decay = own.weight_decay if args.weight_decay is None else args.weight_decay
    make = getattr(sp, OPTIMIZERS[args.optimizer])
    optimizer: sp.Optimizer = make(model.param_groups(weight_decay=decay), **own.options)
    peak = args.lr or own.lr or optimizer.lr
    optimizer.lr = schedules.cosine(peak, steps=epochs * -(-samples // args.batch_size))
    said = {**own.options, "weight decay": optimizer.param_groups[0]["weight_decay"]}
    options = "".join(f", {name} {value:g}" for name, value in said.items() if value)
    rate, plan = f"learning rate {peak:g} falling to 0 (cosine)", f"{epochs} epochs in batches of {args.batch_size}"
    _line("optimizer", f"{OPTIMIZERS[args.optimizer]}, {rate}{options}; {plan}")
    return optimizer, epochs


def _line(label: str, text: str) -> None:
    print(f"{label:<15}{text}", flush=True)
