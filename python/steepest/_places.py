"""Where an optimizer's parameters lie in the flat array of a model's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steepest.nn.layer import Array
    from steepest.nn.sequential import Sequential
    from steepest.optim import Optimizer


def places(params: Any, flat: Array) -> Any:
    """(start, shape, order) of each array, in the structure of `params`; ValueError unless they lie in `flat`."""
    if isinstance(params, Mapping):
        return {name: places(value, flat) for name, value in params.items()}
    if isinstance(params, Sequence):
        return [places(value, flat) for value in params]
    start = (params.ctypes.data - flat.ctypes.data) // flat.itemsize
    if not 0 <= start <= start + params.size <= flat.size:
        raise ValueError("optimizer: its parameters are not this model's; make it of model.param_groups()")
    return start, params.shape, order_of(params)


def order_of(array: Array) -> Any:
    """NumPy's name of the array's memory order."""
    return "C" if array.flags.c_contiguous else "F"


def views_at(found: Any, flat: Array) -> Any:
    """The views of `flat` at these places."""
    if isinstance(found, dict):
        return {name: views_at(value, flat) for name, value in found.items()}
    if isinstance(found, list):
        return [views_at(value, flat) for value in found]
    start, shape, order = found
    return flat[start : start + math.prod(shape)].reshape(shape, order=order)


def places_of(optimizer: Optimizer, flat: Array) -> list[Any]:
    """`places` of the parameters of each group."""
    return [places(group["params"], flat) for group in optimizer.param_groups]


def attach(optimizer: Optimizer, state: Mapping[str, Any], found: Sequence[Any], flat: Array) -> None:
    """Gives the optimizer the `__getstate__` of one whose parameters lay at these places, and those of `flat`.

    A copied or unpickled optimizer has parameters of its own, which are nobody's.
    """
    groups = [{**group, "params": views_at(at, flat)} for group, at in zip(state["groups"], found, strict=True)]
    optimizer.__setstate__({**state, "groups": groups})


def views(model: Sequential, params: Any, flat: Array) -> Any:
    """The views of `flat`, an array like `model.params`, that lie where these parameters are in that."""
    return views_at(places(params, model.params), flat)


def like_params(model: Sequential, optimizer: Optimizer, flat: Array) -> Any:
    """Views of an array like `model.params`, in the structure that the optimizer's parameters have."""
    groups = [views(model, group["params"], flat) for group in optimizer.param_groups]
    return groups if optimizer.grouped else groups[0]
