"""What `steepest train` does unless told otherwise, and what it is told."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import steepest as sp
from steepest import nn, reference, schedules
from steepest.callbacks import Callback, EarlyStopping, ReduceLROnPlateau


class Suited(NamedTuple):
    """What suits an optimizer; None: the optimizer's own default."""

    lr: float | None = None
    weight_decay: float | None = None
    options: Mapping[str, float] = MappingProxyType({})


OPTIMIZERS = {name.lower(): name for name in reference.RULES}

# Chosen by validation accuracy on the digits and, for AdamW, also on Fashion-MNIST, whose test accuracy at other rates
# had been seen by then.
SUITED = {
    "sgd": Suited(0.1, options={"momentum": 0.9}),
    "momentum": Suited(1.0),
    "rmsprop": Suited(2e-3),
    "adagrad": Suited(5e-2),
    "adam": Suited(3e-3),
    "adamw": Suited(3e-3, weight_decay=0.1),
    "nadam": Suited(3e-3),
    "lion": Suited(5e-4, weight_decay=0.1),
}

ACTIVATIONS: dict[str, tuple[str, Callable[[], nn.Layer]]] = {
    "relu": ("ReLU", nn.ReLU),
    "leaky-relu": ("leaky ReLU", lambda: nn.LeakyReLU()),
    "tanh": ("tanh", lambda: nn.Tanh()),
    "sigmoid": ("sigmoid", lambda: nn.Sigmoid()),
}


class Plan(NamedTuple):
    """A schedule: in words, and made of the peak rate, the steps of an epoch and the epochs."""

    words: str
    make: Callable[[float, int, int], Any]
    ends: bool = False  # whether it takes the epochs' number, and is over after them


SCHEDULES = {
    "constant": Plan("", lambda lr, steps, epochs: lr),
    "cosine": Plan("falling to 0 (cosine)", lambda lr, steps, epochs: schedules.cosine(lr, steps * epochs), True),
    "linear": Plan("falling to 0 (linear)", lambda lr, steps, epochs: schedules.linear(lr, 0.0, steps * epochs), True),
    "one-cycle": Plan(
        "at its peak (one-cycle)", lambda lr, steps, epochs: schedules.one_cycle(lr, steps * epochs), True
    ),
    "exponential": Plan("times 0.95 an epoch", lambda lr, steps, epochs: schedules.exponential(lr, 0.95, steps=steps)),
    "step": Plan("halved every 10 epochs", lambda lr, steps, epochs: schedules.step(lr, 10 * steps, 0.5)),
    "plateau": Plan("halved after 3 epochs without a smaller validation loss", lambda lr, steps, epochs: lr),
}

DEFAULTS: dict[str, Any] = {
    "data": None,
    "target": None,
    "header": None,
    "ignore": None,
    "task": None,
    "validation_split": None,
    "from": None,
    "freeze": 0,
    "hidden": (256, 128),
    "activation": "relu",
    "dropout": 0.0,
    "optimizer": "adamw",
    "lr": None,
    "schedule": "cosine",
    "schedule_epochs": None,
    "epochs": None,
    "batch_size": 32,
    "early_stopping": None,
    "l1": 0.0,
    "weight_decay": None,
    "state_dtype": None,
    "class_weight": None,
    "seed": 0,
}
MAY_CHANGE = ("data", "epochs")  # when a run is resumed; other data are found out by their fingerprint


def number(text: str, least: float, most: float, expected: str) -> float:
    """An option's number from `least` to `most`; argparse tells what else was `expected`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return value


def whole_number(text: str, least: int = 1) -> int:
    """An option's whole number from `least` up."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number from {least} up, got {text!r}")
    return int(text)


def counted(n: int, noun: str) -> str:
    """As in "1 epoch" and "2 epochs"."""
    return f"{n:,} {noun}{'s' * (n != 1)}"


def given(args: argparse.Namespace) -> dict[str, Any]:
    """The options that the command line names."""
    found = {name: getattr(args, name, None) for name in DEFAULTS}
    return {name: value for name, value in found.items() if value is not None}


def for_new_run(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of a run, some of which depend on data (`complete`)."""
    asked = given(args)
    settings = DEFAULTS | asked
    own = SUITED.get(settings["optimizer"], Suited())
    settings["lr"] = settings["lr"] or own.lr
    if settings["weight_decay"] is None:
        settings["weight_decay"] = own.weight_decay
    shape = [name for name in ("hidden", "activation", "dropout") if name in asked]
    if settings["from"] and shape:
        raise ValueError(f"--{shape[0]}: the layers are those of --from {settings['from']}; leave it out")
    if settings["freeze"] and not settings["from"]:
        raise ValueError("--freeze: only the layers of a trained model can be frozen; give --from MODEL")
    if settings["validation_split"] == 0 and (settings["early_stopping"] or _plateau(settings)):
        option = "--early-stopping" if settings["early_stopping"] else "--schedule plateau"
        raise ValueError(f"{option} needs validation data; let --validation-split be above 0")
    return settings


def for_resumed_run(args: argparse.Namespace, kept: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a run was started with, and the epochs now asked for."""
    asked = given(args)
    for name, value in asked.items():
        if name not in MAY_CHANGE and value != kept.get(name):
            option = name.replace("_", "-")
            raise ValueError(f"--{option}: the run to resume has {kept.get(name)}, not {value}; leave it out")
    return {**kept, **{name: asked[name] for name in MAY_CHANGE if name in asked}}


def complete(settings: dict[str, Any], samples: int) -> int:
    """Fills in the epochs; returns the optimizer steps in one."""
    settings["epochs"] = settings["epochs"] or (40 if samples < 10_000 else 10)
    settings["schedule_epochs"] = settings["schedule_epochs"] or settings["epochs"]
    return -(-samples // int(settings["batch_size"]))


def make_optimizer(settings: dict[str, Any], model: nn.Sequential, steps: int) -> sp.Optimizer:
    """The optimizer with its schedule; fills in the rate and the weight decay that it turns out to have."""
    own = SUITED.get(settings["optimizer"], Suited())
    groups = model.param_groups(weight_decay=settings["weight_decay"], l1=settings["l1"])
    optimizer: sp.Optimizer = getattr(sp, OPTIMIZERS[settings["optimizer"]])(
        groups, state_dtype=settings.get("state_dtype"), **own.options
    )
    settings["lr"] = settings["lr"] or optimizer.lr
    settings["weight_decay"] = optimizer.param_groups[0]["weight_decay"]
    optimizer.lr = SCHEDULES[settings["schedule"]].make(settings["lr"], steps, settings["schedule_epochs"])
    return optimizer


def callbacks_with_state(settings: Mapping[str, Any]) -> tuple[EarlyStopping | None, list[Callback]]:
    """Early stopping, and all that a checkpoint keeps the state of."""
    patience = settings["early_stopping"]
    stopper = EarlyStopping(patience=patience) if patience else None
    plateau = ReduceLROnPlateau(factor=0.5, patience=3) if _plateau(settings) else None
    return stopper, [callback for callback in (stopper, plateau) if callback]


def _plateau(settings: Mapping[str, Any]) -> bool:
    return bool(settings["schedule"] == "plateau")


def in_words(settings: Mapping[str, Any]) -> str:
    """The optimizer's line."""
    own = SUITED.get(settings["optimizer"], Suited())
    plan = SCHEDULES[settings["schedule"]]
    over = (
        f" over {counted(settings['schedule_epochs'], 'epoch')}"
        if settings["schedule_epochs"] != settings["epochs"] and plan.ends
        else ""
    )
    rate = f"learning rate {settings['lr']:g} {plan.words}".rstrip() + over
    said = {**own.options, "weight decay": settings["weight_decay"], "l1": settings["l1"]}
    options = "".join(f", {name} {value:g}" for name, value in said.items() if value)
    if settings.get("state_dtype"):
        options += f", {settings['state_dtype']} state"
    stopping = f", early stopping after {settings['early_stopping']} without a smaller validation loss"
    size = f"{counted(settings['epochs'], 'epoch')} in batches of {settings['batch_size']}"
    return (
        f"{OPTIMIZERS[settings['optimizer']]}, {rate}{options}; {size}{stopping if settings['early_stopping'] else ''}"
    )
