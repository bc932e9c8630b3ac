"""scikit-learn's network in terms of ours: initial weights, losses, solvers, predictions."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from scipy.special import xlogy

from steepest import _core, losses, nn, optim, schedules
from steepest._batches import take
from steepest._places import attach, places_of
from steepest._scoring import _softmax
from steepest._settings import OPTIMIZERS, SCHEDULES
from steepest.nn.layer import Array, Buffers
from steepest.optim import Optimizer

CHUNK = 1024  # rows at a time where there are no batches, or as many as have so many numbers: bounds the memory
CHUNK_SIZE = 1 << 24
KERNELS = {"identity": "identity", "logistic": "sigmoid", "tanh": "tanh", "relu": "relu"}
LAYERS: dict[str, type[nn.Layer]] = {"logistic": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}
SOLVERS = tuple(OPTIMIZERS)
# Schedules by name, over the `max_iter` epochs; the others of that table need no schedule.
PLANS = {name: plan for name, plan in SCHEDULES.items() if name not in ("constant", "plateau")}


def poisson(
    outputs: Array, targets: Array, *, sample_weight: Array | None = None, out: Array | None = None
) -> tuple[float, Array]:
    """Half the Poisson deviance of exp(outputs), summed over the columns: mean of y log(y / mu) - y + mu."""
    mu = np.exp(outputs)
    weight = np.ones(len(mu), mu.dtype) if sample_weight is None else sample_weight
    total = float(weight.sum(dtype=np.float64)) or 1.0
    terms = xlogy(targets, targets) - targets * outputs - targets + mu
    value = float(weight @ terms.sum(axis=1)) / total
    gradient = np.subtract(mu, targets, out=out)
    gradient *= (weight / total)[:, None]
    return value, gradient


class Loss(NamedTuple):
    """One of our losses, and by what scikit-learn's value and gradient differ from its: they are not of a piece."""

    function: Callable[..., tuple[float, Array]]
    value: float
    gradient: float


def loss_of(out_activation: str, outputs: int) -> Loss:
    """The loss that goes with the network's last activation."""
    return {
        "softmax": Loss(losses.softmax_cross_entropy, 1.0, 1.0),
        "logistic": Loss(losses.binary_cross_entropy, outputs, outputs),
        "identity": Loss(losses.mse, 0.5, outputs / 2),
        "exp": Loss(poisson, 1.0, 1.0),
    }[out_activation]


def initial_parameters(
    rng: np.random.RandomState, units: Sequence[int], activation: str, dtype: np.dtype[Any]
) -> tuple[list[Array], list[Array]]:
    """scikit-learn's initial weights and biases, drawn in its order: uniform on +-sqrt(6 / (fan_in + fan_out))."""
    factor = 2.0 if activation == "logistic" else 6.0
    coefs, intercepts = [], []
    for fan_in, fan_out in pairwise(units):
        bound = math.sqrt(factor / (fan_in + fan_out))
        coefs.append(rng.uniform(-bound, bound, (fan_in, fan_out)).astype(dtype, copy=False))
        intercepts.append(rng.uniform(-bound, bound, fan_out).astype(dtype, copy=False))
    return coefs, intercepts


class Network:
    """A model with these parameters, which become views of its flat array, and its optimizer, if it has one yet."""

    def __init__(
        self, coefs: Sequence[Array], intercepts: Sequence[Array], activation: str, dropout: float, seed: int
    ) -> None:
        self.activation, self.dropout = activation, dropout
        dense = [nn.Dense(weight.shape[1], init=nn.init.zeros) for weight in coefs]
        layers: list[nn.Layer] = []
        for layer in dense[:-1]:
            layers.append(layer)
            if activation in LAYERS:
                layers.append(LAYERS[activation]())
            if dropout:
                layers.append(nn.Dropout(dropout))
        dtype = common_dtype(coefs, intercepts)
        self.model = nn.Sequential([*layers, dense[-1]], len(coefs[0]), seed=seed, dtype=dtype)
        self.coefs = [layer.params["weight"] for layer in dense]
        self.intercepts = [layer.params["bias"] for layer in dense]
        for view, value in zip(self.parameters, [*coefs, *intercepts], strict=True):
            if view.shape != value.shape:
                raise ValueError(
                    f"coefs_, intercepts_: expected shape {view.shape} beside the others, got {value.shape}"
                )
            view[...] = value
        self.optimizer: Optimizer | None = None

    @property
    def penalty(self) -> str:
        """The optimizer's option that adds l2 p to the gradient."""
        return penalty_of(type(self.optimizer))

    @property
    def parameters(self) -> list[Array]:
        """All of them, weights first: the order of the model's flat array."""
        return [*self.coefs, *self.intercepts]

    @property
    def weights(self) -> Array:
        """The part of the flat array that penalties apply to."""
        return self.model.params[: sum(coef.size for coef in self.coefs)]

    def optimized_by(self, solver: str) -> bool:
        """Whether it has an optimizer of that name."""
        return type(self.optimizer).__name__ == OPTIMIZERS[solver]

    def make_optimizer(self, solver: str, options: Mapping[str, Any], rate: Callable[[int], Any]) -> None:
        """Makes the optimizer; one of the same kind that was there hands its moments and step count on.

        `rate`: learning rate or schedule of an optimizer that has taken so many steps.
        """
        kind: type[Optimizer] = getattr(optim, OPTIMIZERS[solver])
        known, penalty = inspect.signature(kind).parameters, penalty_of(kind)
        own = {"params", "lr", "l1", "l2", penalty}
        for name in options:
            if name in own or name not in known:
                raise ValueError(
                    f"solver_options: expected some of {', '.join(sorted(known.keys() - own))}, got {name!r}"
                    + "; the learning rate and the penalties are parameters of their own" * (name in own)
                )
        before = self.optimizer
        optimizer = kind(self.model.param_groups(**{penalty: 0.0, "l1": 0.0}), lr=rate(0), **options)
        if before is not None and type(before) is kind:
            kept = {**before.state_dict(), "param_groups": optimizer.state_dict()["param_groups"]}
            with contextlib.suppress(TypeError, ValueError):  # other options may keep other moments
                optimizer.load_state_dict(kept)
            optimizer.lr = rate(optimizer.steps)
        self.optimizer = optimizer

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_of` gave."""
        with contextlib.suppress(ValueError):  # the dropout was changed meanwhile
            self.model.random_state = state["random_state"]
        if "optimizer" in state:
            kind, kept, found = state["optimizer"]
            self.optimizer = kind.__new__(kind)
            attach(self.optimizer, kept, found, self.model.params)


def penalty_of(kind: type[Any]) -> str:
    """The option of such an optimizer that adds l2 p to the gradient."""
    return "l2" if "l2" in inspect.signature(kind).parameters else "weight_decay"


def common_dtype(coefs: Sequence[Array], intercepts: Sequence[Array]) -> np.dtype[Any]:
    """What a network with these parameters computes in: they may have been set by hand."""
    return np.result_type(*coefs, *intercepts, np.float32)


def state_of(model: nn.Sequential, optimizer: Optimizer | None) -> dict[str, Any]:
    """What a network is beside its parameters, for `Network.restore`."""
    state: dict[str, Any] = {"random_state": model.random_state}
    if optimizer is not None:
        kept = optimizer.__getstate__()
        for group in kept["groups"]:
            del group["params"]
        state["optimizer"] = type(optimizer), kept, places_of(optimizer, model.params)
    return state


def shifted(schedule: Any, start: int) -> Any:
    """The schedule, beginning at step `start`."""
    return schedules.join([schedules.constant(schedule(0)), schedule], [start]) if start else schedule


SparseRows = tuple[Array, Array, Array]  # the starts of rows, the columns and the values of what is not 0


class Samples:
    """Inputs, targets and weights, of which batches of rows are taken.

    Rows of sparse inputs stay so where `model` takes them, else they become dense.
    """

    model: nn.Sequential | None = None

    def __init__(self, x: Any, y: Array, weight: Array | None) -> None:
        self.x = x.tocsr() if sparse.issparse(x) else x
        if sparse.issparse(x) and not self.x.has_canonical_format:  # an entry may be in several parts
            self.x = self.x.copy()
            self.x.sum_duplicates()
        self.y, self.weight = y, weight
        self._buffer = Buffers(x.dtype)
        self._filled: tuple[Array, Array] | None = None  # the last batch of sparse inputs, and where it is not 0

    def __len__(self) -> int:
        return len(self.y)

    def part(self, rows: Array) -> Samples:
        """Some of the rows, as a copy."""
        return Samples(self.x[rows], self.y[rows], None if self.weight is None else self.weight[rows])

    def take(self, rows: slice | Array) -> tuple[Array | SparseRows, Array, Array | None]:
        """The rows, in arrays that the next call reuses."""
        x = self._of_sparse(self.x[rows]) if sparse.issparse(self.x) else self._rows("x", self.x, rows)
        weight = None if self.weight is None else self._rows("weight", self.weight, rows)
        return x, self._rows("y", self.y, rows), weight

    def convert(self, dtype: np.dtype[Any]) -> None:
        """Has targets and weights be of that dtype; inputs are converted batch by batch."""
        if self.y.dtype.kind == "f":
            self.y = self.y.astype(dtype, copy=False)
        if self.weight is not None:
            self.weight = self.weight.astype(dtype, copy=False)

    def chunks(self) -> Iterator[slice]:
        """Slices that cover all rows in order."""
        rows = max(1, min(CHUNK, CHUNK_SIZE // self.x.shape[1]))
        return (slice(start, start + rows) for start in range(0, len(self), rows))

    def _of_sparse(self, part: Any) -> Array | SparseRows:
        """The rows, or where they must be dense an array of which only what the last ones left is cleared."""
        n, features = part.shape
        if self.model is not None and self.model.takes_sparse(n):
            values = part.data.astype(self.model.dtype, copy=False)
            return part.indptr.astype(np.int64, copy=False), part.indices.astype(np.int32, copy=False), values
        if self._filled is not None:
            batch, places = self._filled
            batch.reshape(-1)[places] = 0
        batch = self._buffer("x", part.shape, fill=0)
        places = np.repeat(np.arange(n) * features, np.diff(part.indptr)) + part.indices
        batch.reshape(-1)[places] = part.data
        self._filled = batch, places
        return batch

    def _rows(self, name: str, array: Array, rows: slice | Array) -> Array:
        if isinstance(rows, slice):
            return array[rows]
        out = self._buffer(name, (len(rows), *array.shape[1:]), array.dtype)
        take(array, rows, out)
        return out


def outputs(coefs: Sequence[Array], intercepts: Sequence[Array], activation: str, last: str, x: Any) -> Array:
    """What a network with these parameters makes of the rows, its last activation included."""
    dtype = common_dtype(coefs, intercepts)
    coefs, intercepts = ([np.asarray(p, dtype) for p in parameters] for parameters in (coefs, intercepts))
    result = np.empty((x.shape[0], len(intercepts[-1])), dtype)
    x = x.tocsr() if sparse.issparse(x) else x
    for start in range(0, len(result), CHUNK):
        rows = slice(start, start + CHUNK)
        z = x[rows].astype(dtype, copy=False)  # sparse rows stay so: the first product makes them dense
        for weight, bias in zip(coefs[:-1], intercepts[:-1], strict=True):
            z = z @ weight
            _core.activate(KERNELS[activation], z, np.ascontiguousarray(bias), 0.0, z)
        np.add(z @ coefs[-1], intercepts[-1], out=result[rows])
    return linked(result, last)


def linked(z: Array, activation: str) -> Array:
    """The last activation of `z`, written over it where that is possible."""
    if activation == "softmax":
        return _softmax(z)
    if activation == "exp":
        np.exp(z, out=z)
    elif activation == "logistic":
        _core.activate("sigmoid", z, None, 0.0, z)
    return z
