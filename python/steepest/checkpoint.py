"""Checkpoints: a model, and all it takes to go on training it, in one safetensors file.

No pickle is written or read, and nothing in a file is run. A file appears at once and whole: a crash
while saving, at any moment, leaves the old file or the new one. A checksum over every byte has a
damaged file refused.

A run that goes on where it was stopped, and ends with the same bits as if it had not been:

>>> import os, tempfile
>>> import numpy as np, steepest as sp
>>> from steepest import nn
>>> from steepest.callbacks import ModelCheckpoint
>>> from steepest.train import Trainer
>>> x = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
>>> y = (x[:, 0] > 0).astype(int)
>>> def run(path, epochs):
...     model = nn.Sequential([nn.Dense(8), nn.ReLU(), nn.Dropout(0.5), nn.Dense(2)], input_shape=4)
...     optimizer = sp.Adam(model.param_groups(), lr=sp.schedules.cosine(0.1, steps=40))
...     trainer = Trainer(model, sp.losses.softmax_cross_entropy, optimizer)
...     callbacks = [ModelCheckpoint(path)]
...     start = 0
...     if os.path.exists(path):
...         saved = sp.load_into(path, model, optimizer=optimizer, callbacks=callbacks)
...         trainer.history, start = saved.history, saved.epoch
...     trainer.fit(x, y, epochs=epochs, initial_epoch=start, callbacks=callbacks, verbose=False)
...     return model.params
>>> with tempfile.TemporaryDirectory() as folder:
...     in_one = run(f"{folder}/one.safetensors", epochs=10)
...     _ = run(f"{folder}/two.safetensors", epochs=4)
...     in_two = run(f"{folder}/two.safetensors", epochs=10)
>>> np.array_equal(in_one, in_two)
True
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from steepest import optim, schedules
from steepest._arguments import arrays_of
from steepest._core import __version__
from steepest._places import order_of, places_of, views_at
from steepest.optim import Optimizer

# Layers, safetensors and what they need are imported where they are used: `import steepest` is quick.
if TYPE_CHECKING:
    from steepest._history import History
    from steepest.callbacks import Callback
    from steepest.nn import Sequential

__all__ = ["Checkpoint", "load", "load_into", "save"]

Path = str | os.PathLike[str]
Array = NDArray[Any]


@dataclass
class Checkpoint:
    """What `load` and `load_into` return.

    `model`; `optimizer`, or None if there was none or it was not asked for; `history`, empty if
    there was none; `extra`, the mapping that was saved along; `version`, that of the steepest that
    wrote the file.
    """

    model: Sequential
    optimizer: Optimizer | None
    history: History
    extra: dict[str, Any]
    version: str

    @property
    def epoch(self) -> int:
        """How many epochs are done: the `initial_epoch` to go on with."""
        return self.history.epoch[-1] + 1 if self.history.epoch else 0


def save(
    path: Path,
    model: Sequential,
    *,
    optimizer: Optimizer | None = None,
    history: History | None = None,
    callbacks: Iterable[Callback] = (),
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes a checkpoint, in place of the file that may be there.

    - `model`: its architecture, parameters and generators (what `Dropout` draws from).
    - `optimizer`: made of the model's parameters; its options, state and step counts. A schedule of
      `steepest.schedules` is saved as its name and arguments, one of one's own as its name alone.
    - `history`: what `Trainer.fit` returned, or `trainer.history`.
    - `callbacks`: those with a state, such as `EarlyStopping`, so that they can go on, too.
    - `extra`: a mapping to go along: numbers, strings, None, lists, tuples, mappings, and arrays of
      numbers or strings, nested as you like.

    The file is written beside `path` under a name that begins with ".steepest-", flushed to disk and
    renamed; only a process that is killed meanwhile leaves that one behind. A link is followed, a
    file's permissions are kept, a new file has the usual ones.

    TypeError for a model, an optimizer or extras that cannot be saved; ValueError if the optimizer's
    parameters are not the model's, or `path` is no file; OSError if it cannot be written. In every
    case the old file is as it was.

    >>> import tempfile
    >>> import numpy as np, steepest as sp
    >>> from steepest import nn
    >>> model = nn.Sequential([nn.Dense(3)], input_shape=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sp.save(f"{folder}/model.safetensors", model, extra={"classes": ["a", "b", "c"]})
    ...     saved = sp.load(f"{folder}/model.safetensors")
    >>> saved.model, saved.extra["classes"]
    (Sequential([Dense(units=3)], input_shape=(2,), dtype=float32), ['a', 'b', 'c'])
    >>> np.array_equal(saved.model.params, model.params)
    True
    """
    from steepest import _storage

    _check_model(model)
    if extra is not None and not isinstance(extra, Mapping):
        raise TypeError(f"extra: expected a mapping, got {type(extra).__name__}")
    document = {
        "version": __version__,
        "architecture": {"config": model.config(), "frozen": model.frozen, "random_state": model.random_state},
        "model": model.named_parameters(),
        "optimizer": None if optimizer is None else _optimizer_document(optimizer, model),
        "history": None if history is None else vars(history),
        "callbacks": [(type(c).__name__, c.get_state()) for c in _stateful(callbacks)],
        "extra": extra or {},
    }
    _storage.write(os.fsdecode(path), document)


def load(
    path: Path,
    custom: Mapping[str, Any] | None = None,
    *,
    optimizer: bool = True,
    callbacks: Iterable[Callback] = (),
) -> Checkpoint:
    """Reads a checkpoint into a new model and a new optimizer. See `save`.

    - `custom`: layer classes, initialisers, optimizer classes and schedules of one's own, by name.
    - `optimizer` (True): whether to make the optimizer; predictions don't need it.
    - `callbacks`: those to go on with, in the order in which they were saved.

    FileNotFoundError if there is no such file. ValueError, naming the file and what is wrong, if it
    is damaged, of another kind, or needs a `custom` that is not there.
    """
    from steepest import _storage
    from steepest.nn import Sequential

    name = os.fsdecode(path)
    with _errors_about(name):
        document = _trainable(_storage.read(name))
        saved = document["architecture"]
        model = Sequential.from_config(saved["config"], custom)
        model.freeze(saved["frozen"])
        kept = document["optimizer"] if optimizer else None
        made = None if kept is None else _new_optimizer(kept, model, custom or {})
        return _restored(document, model, made, list(callbacks))


def load_into(
    path: Path, model: Sequential, *, optimizer: Optimizer | None = None, callbacks: Iterable[Callback] = ()
) -> Checkpoint:
    """Reads a checkpoint into a model, and an optimizer and callbacks, made as the saved ones were.

    Parameters and the states of generators, optimizer and callbacks become the saved ones. The
    optimizer's options do too, but a schedule in force stays, and goes on at the saved step.

    Raises as `load` does, and ValueError if the file does not fit what is given. Then, nothing is
    changed.
    """
    from steepest import _storage

    _check_model(model)
    name = os.fsdecode(path)
    with _errors_about(name):
        return _restored(_trainable(_storage.read(name)), model, optimizer, list(callbacks))


def _trainable(document: dict[str, Any]) -> dict[str, Any]:
    if "quantized" in document:
        raise ValueError("a quantised model, which cannot be trained; steepest.compress.load reads it to predict")
    return document


def _check_model(model: Any) -> None:
    from steepest.nn import Sequential

    if not isinstance(model, Sequential):
        raise TypeError(f"model: expected an nn.Sequential, got {type(model).__name__}")
    if hasattr(model, "quantized_layers"):
        raise TypeError("model: expected one that trains, got a quantised one; steepest.compress.save takes it")


@contextmanager
def _errors_about(path: str) -> Iterator[None]:
    """Has what goes wrong with a file be a ValueError with its name."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        if isinstance(error, ValueError) and str(error).startswith(f"{path}: "):
            raise
        message = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: {message}") from error


def _restored(
    document: Mapping[str, Any], model: Sequential, optimizer: Optimizer | None, callbacks: list[Callback]
) -> Checkpoint:
    """Moves the document into these objects, or raises and leaves them as they were."""
    parameters, saved_layers = document["model"], document["architecture"]["config"]["layers"]
    kinds, expected = [layer["type"] for layer in saved_layers], [type(layer).__name__ for layer in model.layers]
    if kinds != expected:
        raise ValueError(f"model: expected the layers {expected}, got {kinds}")
    _check_parameters(parameters, model.named_parameters())
    states = _matched(document["callbacks"], callbacks)
    result = Checkpoint(model, optimizer, _history(document["history"]), document["extra"], document["version"])
    before = model.random_state
    try:
        model.random_state = document["architecture"]["random_state"]
        if optimizer is not None:
            optimizer.load_state_dict(_state_dict(document["optimizer"], optimizer))
    except BaseException:
        model.random_state = before
        raise
    for name, parameter in model.named_parameters().items():
        parameter[...] = parameters[name]
    for callback, state in zip(_stateful(callbacks), states, strict=True):
        callback.set_state(state)
    return result


def _check_parameters(saved: Mapping[str, Array], given: Mapping[str, Array]) -> None:
    if saved.keys() != given.keys():
        raise ValueError(f"model: expected the parameters {list(given)}, got {list(saved)}")
    for name, parameter in given.items():
        got = saved[name]
        if (got.dtype, got.shape) != (parameter.dtype, parameter.shape):
            raise ValueError(
                f"model: {name}: expected {parameter.dtype} {parameter.shape}, got {got.dtype} {got.shape}"
            )


def _stateful(callbacks: Iterable[Callback]) -> list[Callback]:
    return [callback for callback in callbacks if callback.get_state()]


def _matched(saved: list[tuple[str, dict[str, Any]]], callbacks: list[Callback]) -> list[dict[str, Any]]:
    """The states for the callbacks with a state; all of those that were saved, or none."""
    wanted = [(type(c).__name__, set(c.get_state())) for c in _stateful(callbacks)]
    if not wanted:
        return []
    if wanted != [(name, set(state)) for name, state in saved]:
        names = [name for name, _ in saved]
        raise ValueError(f"callbacks: expected {[name for name, _ in wanted]}, got the states of {names}")
    return [state for _, state in saved]


def _history(saved: Mapping[str, Any] | None) -> History:
    from steepest._history import History

    history = History()
    for name, value in (saved or {}).items():
        if name not in vars(history) or type(value) is not type(getattr(history, name)):
            raise ValueError(f"history: expected {list(vars(history))}, got {name!r}: {value!r:.40}")
        setattr(history, name, value)
    return history


def _optimizer_document(optimizer: Optimizer, model: Sequential) -> dict[str, Any]:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer: expected one of steepest's, got {type(optimizer).__name__}")
    groups = optimizer.param_groups
    return {
        "type": type(optimizer).__name__,
        "defaults": {name: _described(value) for name, value in optimizer._defaults.items()},
        "max_norm": optimizer._max_norm,
        "nonfinite": optimizer._nonfinite,
        "precision": optimizer._precision,
        "grouped": optimizer.grouped,
        "rates": [_described(group["lr"]) for group in groups],
        "places": places_of(optimizer, model.params),
        **optimizer.state_dict(),
    }


def _new_optimizer(saved: Mapping[str, Any], model: Sequential, custom: Mapping[str, Any]) -> Optimizer:
    known = {name: kind for name, kind in vars(optim).items() if isinstance(kind, type)} | dict(custom)
    kind = known.get(saved["type"])
    if not (isinstance(kind, type) and issubclass(kind, Optimizer)):
        raise ValueError(_unknown("optimizer", saved["type"]))
    groups = []
    for options, rate, found in zip(saved["param_groups"], saved["rates"], saved["places"], strict=True):
        groups.append({**options, "lr": _rebuilt(rate, custom), "params": views_at(found, model.params)})
    defaults = {name: _rebuilt(value, custom) for name, value in saved["defaults"].items()}
    shared = {name: saved[name] for name in ("max_norm", "nonfinite")}
    if "precision" in saved:  # not in files of version 0.1.0
        shared |= zip(("state_dtype", "seed", "master_weights"), saved["precision"], strict=True)
    optimizer = kind(groups, **shared, **defaults)
    optimizer._core.grouped = saved["grouped"]
    return optimizer


def _state_dict(saved: Mapping[str, Any] | None, optimizer: Optimizer) -> dict[str, Any]:
    """What `load_state_dict` takes, each array in the memory order of its parameter."""
    if saved is None:
        raise ValueError("optimizer: expected the state of one, but it was saved without")
    if saved["type"] != type(optimizer).__name__:
        raise ValueError(f"optimizer: expected the state of {type(optimizer).__name__}, got {saved['type']}'s")
    parameters = [p for group in optimizer.param_groups for p in arrays_of(group["params"])]
    state = {
        i: {name: np.asarray(x, order=order_of(p)) if isinstance(x, np.ndarray) else x for name, x in one.items()}
        for p, (i, one) in zip(parameters, saved["state"].items(), strict=False)
    }
    if len(saved["state"]) != len(parameters):
        raise ValueError(f"optimizer: expected the state of {len(parameters)} arrays, got {len(saved['state'])}")
    return {"steps": saved["steps"], "state": state, "param_groups": saved["param_groups"]}


def _described(value: Any) -> Any:
    """An option as plain data: a schedule of ours by name and arguments, another one by name."""
    if isinstance(value, schedules._Schedule):
        names = value.func.__code__.co_varnames
        arguments = {n: _described(a) for n, a in zip(names, value.args, strict=False)}
        return {"schedule": value.func.__name__.removeprefix("_"), "arguments": arguments}
    if isinstance(value, tuple):
        return tuple(map(_described, value))
    return {"custom": getattr(value, "__name__", type(value).__name__)} if callable(value) else value


def _rebuilt(value: Any, custom: Mapping[str, Any]) -> Any:
    if isinstance(value, tuple):
        return tuple(_rebuilt(item, custom) for item in value)
    if not isinstance(value, dict):
        return value
    if "custom" in value:
        if value["custom"] not in custom:
            raise ValueError(_unknown("schedule", value["custom"]))
        return custom[value["custom"]]
    if value["schedule"] not in schedules.__all__:
        raise ValueError(f"unknown schedule {value['schedule']!r}")
    arguments = {name: _rebuilt(item, custom) for name, item in value["arguments"].items()}
    return getattr(schedules, value["schedule"])(**arguments)


def _unknown(what: str, name: str) -> str:
    return f"unknown {what} {name!r}; pass custom={{{name!r}: ...}}, or optimizer=False to load the model alone"
