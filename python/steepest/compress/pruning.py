"""Pruning: weights, or whole units, are set to zero, kept there while training goes on, and cut out."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np

from steepest import nn
from steepest._places import like_params, views
from steepest.callbacks import Callback
from steepest.nn.activations import Activation
from steepest.nn.layer import Array
from steepest.nn.layers import Affine
from steepest.nn.pooling import AvgPool2D, MaxPool2D
from steepest.optim import Optimizer

__all__ = ["Pruning", "cubic", "prune", "shrink"]

Amount = float | Callable[[int], float]
Method = Literal["random", "magnitude", "l1", "l2"] | float

NORMS = {"magnitude": 1.0, "l1": 1.0, "l2": 2.0}
EACH_BY_ITSELF = (Activation, nn.Dropout, MaxPool2D, AvgPool2D, nn.Flatten)  # no unit's value reaches another's


def cubic(amount: float, steps: int, *, begin: int = 0, initial: float = 0.0) -> Callable[[int], float]:
    """A schedule of `prune`'s amount: quickly at first, then ever more slowly.

    amount + (initial - amount) (1 - (step - begin) / steps)^3 from step `begin` on, for `steps` steps;
    `initial` before and `amount` after. ValueError unless 0 <= initial <= amount <= 1, steps >= 1 and
    begin >= 0. Zhu and Gupta, "To prune, or not to prune", 2017.

    >>> from steepest import compress
    >>> [round(compress.cubic(0.8, steps=4)(step), 3) for step in range(6)]
    [0.0, 0.463, 0.7, 0.788, 0.8, 0.8]
    """
    if not (0 <= initial <= amount <= 1 and steps >= 1 and begin >= 0):
        raise ValueError(
            "expected 0 <= initial <= amount <= 1, steps >= 1 and begin >= 0, "
            f"got {initial!r}, {amount!r}, {steps!r} and {begin!r}"
        )
    return lambda step: amount + (initial - amount) * (1 - min(max(step - begin, 0) / steps, 1.0)) ** 3


def prune(
    model: nn.Sequential,
    amount: Amount | Mapping[int, float],
    *,
    method: Method = "magnitude",
    structured: bool = False,
    scope: Literal["layer", "global"] | None = None,
    layers: Iterable[int] | None = None,
    every: int = 100,
    seed: int = 0,
) -> Pruning:
    """Sets a model's least weights to zero at once; the `Pruning` returned keeps them there in training.

    - `amount`: how much is zero afterwards, of what there is and not of what is left: a fraction (a
      float from 0 to 1) or a count (an integer). A mapping of layers' numbers gives each its own. A
      function of the step, such as `cubic`, makes it gradual: as a callback, the `Pruning` then prunes on
      after every `every` (100) optimizer steps, by the weights of that moment.
    - `method` ("magnitude"): which go first. "magnitude" or "l1": those of the least |w|; "random":
      any, drawn with `seed`, the baseline that the others must beat. For units, "l2", or a number n >= 1,
      takes the Ln norm of the weights; a single weight's norms order it as |w| does.
    - `structured` (False): whole units, dense neurons and convolution filters, with their biases, by
      the norm of their incoming weights; `shrink` then makes a smaller model. The outputs stay.
    - `scope`: "layer", the amount in each layer, or "global", of all layers together, by one ranking
      (of units, the means of |w|^n count, as layers differ in inputs). None is "global" for weights,
      where it costs less accuracy, and "layer" for units.
    - `layers` (None): numbers of layers, as in `model.named_parameters()`; None is all that have weights.

    Biases are not pruned by themselves. What is zero stays pruned in all later rankings. Of equals,
    the first go first, so the same weights give the same masks everywhere. NaN counts as the largest.

    TypeError for what is no `nn.Sequential`, or an amount that is no number; ValueError for an amount,
    layer or method out of range, a count of more than there is, units that cannot be cut out, or all of
    a layer's; then nothing is changed.

    The names follow `torch.nn.utils.prune`, for a model instead of a module.

    >>> import numpy as np
    >>> import steepest as sp
    >>> from steepest import compress, nn
    >>> from steepest.train import Trainer
    >>> x = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    >>> model = nn.Sequential([nn.Dense(32), nn.ReLU(), nn.Dense(2)], input_shape=4)
    >>> trainer = Trainer(model, sp.losses.softmax_cross_entropy, sp.Adam(model.param_groups()))
    >>> pruning = compress.prune(model, 0.75)
    >>> _ = trainer.fit(x, (x[:, 0] > 0).astype(int), epochs=2, callbacks=[pruning], verbose=False)
    >>> pruning.sparsity
    0.75
    """
    return Pruning(model, amount, method, structured, scope, layers, every, seed)


class Pruning(Callback):
    """What `prune` pruned of a model, to be kept so: as a callback of `Trainer.fit`, or with `keep`.

    `masks` has a bool array for each parameter that is pruned in part, by name, False where it is; they
    are the optimizer's masks, applied within its steps. Pass it to `fit` after callbacks that put back
    earlier weights (`EarlyStopping`): what those restore is masked again. A checkpoint keeps the masks
    and how far a gradual pruning is, if it gets the callback; go on with `steepest.load_into`.
    """

    def __init__(
        self,
        model: nn.Sequential,
        amount: Amount | Mapping[int, float],
        method: Method,
        structured: bool,
        scope: str | None,
        layers: Iterable[int] | None,
        every: int,
        seed: int,
    ) -> None:
        if not isinstance(model, nn.Sequential):
            raise TypeError(f"model: expected an nn.Sequential, got {type(model).__name__}")
        scope = scope or ("layer" if structured or isinstance(amount, Mapping) else "global")
        if scope not in ("layer", "global") or (scope == "global" and isinstance(amount, Mapping)):
            raise ValueError(f"scope: expected 'layer', or without a mapping of amounts 'global', got {scope!r}")
        if operator.index(every) < 1:
            raise ValueError(f"every: expected a number of steps from 1 up, got {every!r}")
        self.model, self.structured, self._scope, self._every = model, structured, scope, every
        self._norm = _norm(method)
        numbers = _targets(model, structured, list(amount) if isinstance(amount, Mapping) else layers)
        self._amounts = {i: amount[i] if isinstance(amount, Mapping) else amount for i in numbers}
        self._rng = np.random.default_rng(seed)
        self._keep = np.ones(model.params.shape, bool)
        self._optimizers: list[Optimizer] = []
        self._begin: int | None = None
        self._step = 0
        self._removed = False
        self._update(0)

    @property
    def masks(self) -> dict[str, Array]:
        """A copy of the mask of each parameter that is pruned in part, by its name in the model."""
        named = views(self.model, self.model.named_parameters(), self._keep)
        return {name: mask.copy() for name, mask in named.items() if not mask.all()}

    @property
    def sparsity(self) -> float:
        """The share of zeros in the weights of the layers that it prunes."""
        weights = [w for i in self._amounts for w in self._weights(i, self.model.params)]
        return sum(int(np.count_nonzero(w == 0)) for w in weights) / sum(w.size for w in weights)

    def keep(self, optimizer: Optimizer) -> None:
        """Has an optimizer of the model's parameters keep them pruned; for a loop without `Trainer`."""
        optimizer.set_masks(like_params(self.model, optimizer, self._keep))
        if not any(optimizer is known for known in self._optimizers):
            self._optimizers.append(optimizer)

    def remove(self) -> None:
        """Makes the pruning permanent: lifts the masks. The weights are zero, and free to move again."""
        self._apply()
        for optimizer in self._optimizers:
            optimizer.set_masks(None)
        self._optimizers.clear()
        self._keep[...] = True
        self._removed = True

    def get_state(self) -> dict[str, Any]:
        """The masks, and where a gradual pruning is."""
        return {"keep": self._keep.copy(), "begin": self._begin, "rng": self._rng.bit_generator.state}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes over what `get_state` gave."""
        if state["keep"].shape != self._keep.shape:
            raise ValueError(f"expected a mask of {self._keep.size} parameters, got {state['keep'].size}")
        self._keep[...] = state["keep"]
        self._begin = state["begin"]
        self._rng.bit_generator.state = state["rng"]
        self._apply()

    def on_train_begin(self, logs: dict[str, float]) -> None:
        """Gives the optimizer the masks."""
        trainer = self.trainer
        if trainer.model is not self.model:
            raise ValueError("Pruning: expected the model that it prunes, got a trainer of another one")
        if sum(isinstance(callback, Pruning) for callback in trainer.callbacks) > 1:
            raise ValueError("callbacks: expected one Pruning, got more; its amount may be a mapping of layers")
        if self._begin is None:
            self._begin = trainer.optimizer.steps
        self._step = trainer.optimizer.steps
        if not self._removed:
            self._apply()
            self.keep(trainer.optimizer)

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        """Prunes on, if it is gradual and time to."""
        optimizer = self.trainer.optimizer
        if self._removed or optimizer.steps == self._step or not any(map(callable, self._amounts.values())):
            return
        self._step = optimizer.steps
        done = self._step - (self._begin or 0)
        if done % self._every == 0:
            self._update(done)
            self.keep(optimizer)

    def on_train_end(self, logs: dict[str, float]) -> None:
        """Masks what another callback may have put back."""
        self._apply()

    def _apply(self) -> None:
        self.model.params[~self._keep] = 0

    def _weights(self, i: int, flat: Array) -> list[Array]:
        """The views of a flat array where a layer's weights are."""
        layer = self.model.layers[i]
        weights = {name: layer.params[name] for name, p in layer.declared.items() if p.decay}
        return list(views(self.model, weights, flat).values())

    def _update(self, step: int) -> None:
        """Ranks anew, and zeroes as many as are due at that step."""
        amounts = {i: amount(step) if callable(amount) else amount for i, amount in self._amounts.items()}
        scores = {i: self._scores(i) for i in amounts}
        what = "units" if self.structured else "weights"
        if self._scope == "global":
            every = np.concatenate(list(scores.values()))
            count = _count(next(iter(amounts.values())), len(every), f"{what} of all layers")
            ends = np.cumsum([len(s) for s in scores.values()])[:-1]
            chosen = dict(zip(scores, np.split(_least(every, count), ends), strict=True))
        else:
            counts = {i: _count(amount, len(scores[i]), f"{what} of layer {i}") for i, amount in amounts.items()}
            chosen = {i: _least(scores[i], counts[i]) for i in scores}
        for i, which in chosen.items():
            if self.structured and which.all():
                raise ValueError(f"amount: expected to leave a unit of layer {i}, got all {len(which)} of them")
        for i, which in chosen.items():
            self._drop(i, which)
        self._apply()

    def _drop(self, i: int, which: Array) -> None:
        if self.structured:
            for mask in views(self.model, self.model.layers[i].params, self._keep).values():
                mask[..., which] = False
            return
        start = 0
        for mask in self._weights(i, self._keep):
            mask[which[start : start + mask.size].reshape(mask.shape)] = False
            start += mask.size

    def _scores(self, i: int) -> Array:
        """The rank of each weight or unit of a layer, in double; that of what is pruned is below all."""
        weights, masks = self._weights(i, self.model.params), self._weights(i, self._keep)
        if self.structured:  # an affine layer: its units are the last axis of its one weight
            w, mask = (x[0].reshape(-1, x[0].shape[-1]) for x in (weights, masks))
            kept = mask.any(axis=0)
            scores = self._rng.random(w.shape[1]) if self._norm is None else _norms(w, self._norm)
        else:
            w, kept = (np.concatenate([x.ravel() for x in arrays]) for arrays in (weights, masks))
            scores = self._rng.random(w.size) if self._norm is None else np.abs(w.astype(np.float64))
        return np.where(kept, np.where(np.isnan(scores), math.inf, scores), -math.inf)


def _norm(method: Any) -> float | None:
    """The n of the norm that ranks; None is at random."""
    if isinstance(method, str):
        if method == "random":
            return None
        if method in NORMS:
            return NORMS[method]
    elif isinstance(method, int | float) and method >= 1:
        return float(method)
    raise ValueError(f"method: expected 'random', {', '.join(map(repr, NORMS))} or a number n >= 1, got {method!r}")


def _norms(w: Array, n: float) -> Array:
    """The mean of |w|^n over a unit's inputs, to the power of 1 / n."""
    size = np.abs(w.astype(np.float64))
    largest = size.max(axis=0, keepdims=True)
    if n == math.inf:
        return np.asarray(largest[0])
    scale = np.where((largest > 0) & (largest < math.inf), largest, 1.0)
    return np.asarray(scale[0] * ((size / scale) ** n).mean(axis=0) ** (1 / n))


def _least(scores: Array, count: int) -> Array:
    """Whether each is among the `count` smallest; of equals, the first are."""
    chosen = np.zeros(len(scores), bool)
    if count:
        bound = np.partition(scores, count - 1)[count - 1]
        chosen = scores < bound
        chosen[np.flatnonzero(scores == bound)[: count - np.count_nonzero(chosen)]] = True
    return chosen


def _count(amount: Any, size: int, what: str) -> int:
    if not isinstance(amount, int | float | np.integer | np.floating) or isinstance(amount, bool):
        raise TypeError(f"amount: expected a number, or a function of the step, got {type(amount).__name__}")
    whole = isinstance(amount, int | np.integer)
    if not 0 <= amount <= (size if whole else 1):
        raise ValueError(
            f"amount: expected a fraction from 0.0 to 1.0, or a count from 0 to {size} ({what}), got {amount!r}"
        )
    return int(amount) if whole else round(float(amount) * size)


def _targets(model: nn.Sequential, structured: bool, asked: Iterable[int] | None) -> list[int]:
    """The numbers of the layers to prune."""
    if structured:
        known = [i for i in range(len(model.layers)) if _next(model, i) is not None]
        what = "layers whose units can be cut out (Dense and Conv2D, with another one behind them)"
    else:
        known = [i for i, layer in enumerate(model.layers) if any(p.decay for p in layer.declared.values())]
        what = "layers with weights"
    asked = known if asked is None else list(asked)
    if not asked or any(i not in known for i in asked):
        raise ValueError(f"layers: expected some of {known}, the {what}, got {asked}")
    return sorted(set(asked))


def _next(model: nn.Sequential, i: int) -> int | None:
    """The number of the layer that takes the units of layer i one by one; None if there is none."""
    if isinstance(model.layers[i], Affine):
        for j, layer in enumerate(model.layers[i + 1 :], i + 1):
            if isinstance(layer, Affine):
                return j
            if not isinstance(layer, EACH_BY_ITSELF):
                break
    return None


def shrink(model: nn.Sequential) -> nn.Sequential:
    """A smaller model with the same outputs, up to rounding: units that are dead are cut out.

    A dense neuron or convolution filter is dead if its incoming weights are all zero, so that it gives the
    same for every input, or if nothing that takes it has a weight for it. Its weights, its bias and the
    weights that the next Dense or Conv2D has for it go, also behind activations, pooling, dropout and
    flattening; what it gave (f(bias)) moves into the biases of that layer. One unit of a layer stays.
    `model` is not changed; the new one needs an optimizer of its own. What `prune(..., structured=True)`
    pruned is dead.

    TypeError for what is no `nn.Sequential`; ValueError if nothing can be cut out: no dead unit, or none
    whose constant can move (there is no bias, or padding "same" makes it one only inside).

    >>> import numpy as np
    >>> from steepest import compress, nn
    >>> layers = [nn.Conv2D(8, 3), nn.ReLU(), nn.MaxPool2D(), nn.Flatten(), nn.Dense(10)]
    >>> model = nn.Sequential(layers, input_shape=(28, 28, 1))
    >>> _ = compress.prune(model, 0.5, structured=True)
    >>> small = compress.shrink(model)
    >>> small.layers[0], small.params.size / model.params.size < 0.51
    (Conv2D(filters=4, kernel_size=3), True)
    >>> x = np.ones((1, 28, 28, 1), np.float32)
    >>> bool(np.allclose(small.forward(x), model.forward(x), atol=1e-6))
    True
    """
    if not isinstance(model, nn.Sequential):
        raise TypeError(f"model: expected an nn.Sequential, got {type(model).__name__}")
    params = {name: p.copy() for name, p in model.named_parameters().items()}
    layers: list[Any] = copy.deepcopy(model.layers)
    pairs = [(i, j) for i in range(len(layers)) if (j := _next(model, i)) is not None]
    cut = 0
    for i, j in (*pairs, *reversed(pairs)):  # what goes may leave others dead, behind it and before
        dead = _dead(model, params, i, j)
        kept = np.flatnonzero(~dead)
        cut += int(dead.sum())
        for name in (f"{i}.weight", f"{i}.bias"):
            if name in params:
                params[name] = params[name][..., kept]
        layers[i].__dict__["units" if isinstance(layers[i], nn.Dense) else "filters"] = len(kept)
        into = _by_unit(params, i, j, len(dead))[:, kept]
        params[f"{j}.weight"] = into.reshape(*params[f"{j}.weight"].shape[:-2], -1, into.shape[-1])
    if not cut:
        raise ValueError("model: expected dead units to cut out, got none; prune(..., structured=True) makes some")
    small = nn.Sequential(layers, model.input_shape, seed=model.seed, dtype=model.dtype)
    for name, p in small.named_parameters().items():
        p[...] = params[name]
    small.random_state = model.random_state
    small.freeze(model.frozen)
    return small


def _by_unit(params: Mapping[str, Array], i: int, j: int, units: int) -> Array:
    """Layer j's weight as (places, units of layer i, units of layer j)."""
    weight = params[f"{j}.weight"]
    return weight.reshape(-1, units, weight.shape[-1])


def _dead(model: nn.Sequential, params: dict[str, Array], i: int, j: int) -> Array:
    """Which units of layer i can go; what they give moves into the bias of layer j."""
    weight = params[f"{i}.weight"]
    units = weight.shape[-1]
    into = _by_unit(params, i, j, units)
    unused = ~into.any(axis=(0, 2))
    constant = ~weight.reshape(-1, units).any(axis=0) & ~unused
    gives = params.get(f"{i}.bias", np.zeros(units, model.dtype)).copy()
    for layer in model.layers[i + 1 : j]:
        if isinstance(layer, Activation):
            gives = layer.activate(gives[None], None, np.empty_like(gives[None]))[0]
    silent = gives == 0
    taker: Any = model.layers[j]
    if f"{j}.bias" not in params or getattr(taker, "padding", "valid") != "valid":
        constant &= silent
    dead = np.asarray(unused | constant)
    if dead.all():
        dead[0] = False
    moved = np.flatnonzero(dead & constant & ~silent)
    if moved.size:
        params[f"{j}.bias"] += np.einsum("pud,u->d", into[:, moved], gives[moved])
    return dead
