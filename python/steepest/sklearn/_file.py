"""Estimators in files without pickle: a checkpoint of the model, and the rest as plain data beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.preprocessing import LabelBinarizer

import steepest
from steepest.checkpoint import _described, _rebuilt
from steepest.sklearn._network import Network, state_of

# What the checkpoint has a place of its own for.
APART = ("coefs_", "intercepts_", "history_")


def save(path: str | os.PathLike[str], estimator: Any, network: Network) -> None:
    """Writes the estimator and its network."""
    parameters = {
        name: _plain(value) for name, value in estimator.get_params(deep=False).items() if name != "callbacks"
    }
    fitted = {name: value for name, value in vars(estimator).items() if name.endswith("_") and name not in APART}
    extra = {
        "estimator": type(estimator).__name__,
        "parameters": parameters,
        "fitted": {name: _plain(value) for name, value in fitted.items()},
        "stalled": estimator._no_improvement_count,
    }
    if binarizer := vars(estimator).get("_label_binarizer"):
        extra["targets"] = {"y_type_": binarizer.y_type_, "sparse_input_": bool(binarizer.sparse_input_)}
    steepest.save(
        path, network.model, optimizer=network.optimizer, history=estimator.history_, extra={"sklearn": extra}
    )


def load(path: str | os.PathLike[str], kind: type[Any], custom: Mapping[str, Any] | None) -> Any:
    """The estimator in that file, of that class."""
    checkpoint = steepest.load(path, custom)
    saved = checkpoint.extra.get("sklearn", {})
    if saved.get("estimator") != kind.__name__:
        raise ValueError(
            f"{os.fsdecode(path)}: expected a {kind.__name__}, got {saved.get('estimator', 'a model alone')}"
        )
    estimator = kind(**{name: _original(value, custom or {}) for name, value in saved["parameters"].items()})
    for name, value in saved["fitted"].items():
        setattr(estimator, name, _original(value, {}))
    named = checkpoint.model.named_parameters()
    estimator.coefs_ = [value for name, value in named.items() if name.endswith("weight")]
    estimator.intercepts_ = [value for name, value in named.items() if name.endswith("bias")]
    estimator.history_, estimator._no_improvement_count = checkpoint.history, saved["stalled"]
    if "targets" in saved:
        estimator._label_binarizer = LabelBinarizer()
        vars(estimator._label_binarizer).update(classes_=estimator.classes_, **saved["targets"])
    estimator._network = state_of(checkpoint.model, checkpoint.optimizer)
    return estimator


def _plain(value: Any) -> Any:
    """A parameter or attribute as plain data and arrays."""
    if isinstance(value, np.random.RandomState):
        return {"RandomState": value.get_state(legacy=False)}
    if isinstance(value, np.ndarray) and value.dtype == object:
        return {"objects": value.tolist(), "shape": list(value.shape)}
    if isinstance(value, Mapping):  # of the user's, with any keys
        return {"mapping": dict(value)}
    return _described(value)


def _original(value: Any, custom: Mapping[str, Any]) -> Any:
    if not isinstance(value, dict):
        return value
    if "mapping" in value:
        return value["mapping"]
    if "RandomState" in value:
        state = np.random.RandomState()
        state.set_state(value["RandomState"])
        return state
    if "objects" in value:
        array = np.empty(value["shape"], object)
        array[...] = value["objects"]
        return array
    return _rebuilt(value, custom) if value.keys() & {"schedule", "custom"} else value
