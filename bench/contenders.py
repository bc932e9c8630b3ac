"""Ours and the peers' ways to take an optimizer's step, and to compute a loss with its gradient.

What a step streams through is one set of `Arrays` for ours and the peer: pages of memory differ in speed, in a virtual
machine by more than contenders do. PyTorch and JAX are imported where they take part.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count as count_from
from typing import Any

import numpy as np

import steepest as sp
from steepest import _as_written, _contenders
from steepest.benchmarks import Contender, check, loss_contender, random, stream

Array = Any
Contest = dict[str, Contender]
Maker = Callable[["Arrays"], Contender]
CHECKED = 1 << 20  # elements of an array, at most, that contenders' answers are compared on


class Arrays:
    """Parameters, their gradients, and the state by its names in PyTorch; of `count` arrays of n elements."""

    def __init__(self, count: int, n: int, dtype: str = "float32") -> None:
        self.start = [random(n, 2 * i).astype(dtype, copy=False) for i in range(count)]
        self.gradients = [np.abs(random(n, 2 * i + 1)).astype(dtype, copy=False) for i in range(count)]
        self.params = [p.copy() for p in self.start]
        self._state: dict[str, list[Array]] = {}

    def state(self, name: str) -> list[Array]:
        if name not in self._state:
            self._state[name] = [np.zeros_like(p) for p in self.params]
        return self._state[name]

    def coded_state(self, name: str, i: int, like: Array) -> Array:
        """State in fewer bytes, in the same memory, from a cache line's beginning on."""
        raw = self.state(name)[i].view(np.uint8)
        start = -raw.ctypes.data % 64
        return raw[start : start + like.nbytes].view(like.dtype)

    def clear_state(self) -> None:
        for x in (x for each in self._state.values() for x in each):
            x.fill(0)

    def moved(self) -> list[tuple[Array, Array]]:
        return list(zip(self.params, self.start, strict=True))


def contest(makers: dict[str, Maker], arrays: Arrays, tolerance: float = 1e-3) -> Contest:
    """Checks the contenders on arrays of their own, then gives them these."""
    count, n, dtype = len(arrays.params), arrays.params[0].size, str(arrays.params[0].dtype)
    apart = {name: make(Arrays(count, min(n, CHECKED), dtype)) for name, make in makers.items()}
    check(apart, tolerance=tolerance)
    return {name: make(arrays)._replace(answer=list) for name, make in makers.items()}


def contest_of_states(makers: dict[str, Maker], n: int, tolerance: float) -> tuple[Contest, Callable[[str], object]]:
    """The same where each keeps state in its own way in one memory: it is cleared when another's turn begins."""
    arrays = Arrays(1, n)
    made = contest(makers, arrays, tolerance)
    turn = ""

    def before(name: str) -> None:
        nonlocal turn
        if name != turn:
            arrays.clear_state()
            made[name].call()
        turn = name

    return made, before


def state_names(make: Callable[..., sp.Optimizer]) -> list[str]:
    return [name for name, x in make(np.zeros(1)).state_dict()["state"][0].items() if isinstance(x, np.ndarray)]


def steepest_step(make: Callable[..., sp.Optimizer], arrays: Arrays) -> Contender:
    one = len(arrays.params) == 1
    optimizer = make(arrays.params[0] if one else arrays.params)
    saved = optimizer.state_dict(copy=False)
    for i, state in saved["state"].items():
        for name, x in state.items():
            if isinstance(x, np.ndarray) and x.shape == arrays.params[i].shape:
                is_full = x.dtype == arrays.params[i].dtype
                state[name] = arrays.state(name)[i] if is_full else arrays.coded_state(name, i, x)
    optimizer.load_state_dict(saved, copy=False)
    return Contender(partial(optimizer.step, arrays.gradients[0] if one else arrays.gradients), arrays.moved)


def stream_step(make: Callable[..., sp.Optimizer], arrays: Arrays) -> Contender:
    """A loop that only adds, over as many arrays of one as the rule has."""
    state = [arrays.state(name)[0] for name in state_names(make)]
    return stream([arrays.params[0], *state], [], arrays.gradients)


def numpy_step(preallocated: bool, options: dict[str, Any], arrays: Arrays) -> Contender:
    """AdamW's formula as people write it, or with `out=` everywhere."""
    (p,), (g,), steps = arrays.params, arrays.gradients, count_from(1)
    options = {"betas": (0.9, 0.999), "eps": 1e-8, **options}
    if not preallocated:
        state: dict[str, Any] = {}
        return Contender(lambda: _as_written.adamw(p, g, state, next(steps), **options), arrays.moved)
    (m,), (v,) = arrays.state("exp_avg"), arrays.state("exp_avg_sq")
    buffers = {"m": m, "v": v, "a": np.empty_like(p), "b": np.empty_like(p)}
    return Contender(lambda: _contenders.adamw(p, g, buffers, next(steps), **options), arrays.moved)


def import_torch() -> Any:
    """PyTorch, on as many threads as ours."""
    import torch

    torch.set_num_threads(sp.get_num_threads())
    return torch


def torch_step(rule: str, kind: str, options: dict[str, Any], arrays: Arrays, max_norm: float = 0) -> Contender:
    """`kind` is "fused" or "foreach"; with `max_norm`, `clip_grad_norm_` comes before the step."""
    torch = import_torch()
    tensors = [torch.from_numpy(p).requires_grad_() for p in arrays.params]
    optimizer = getattr(torch.optim, rule)(tensors, **options, **{kind: True})
    names = state_names(partial(getattr(sp, rule), **options))
    for i, tensor in enumerate(tensors):
        tensor.grad = torch.from_numpy(arrays.gradients[i])
        own = {name: torch.from_numpy(arrays.state(name)[i]) for name in names}
        optimizer.state[tensor] = {"step": torch.tensor(0.0), "mu_product": torch.tensor(1.0), **own}

    def clip_and_step() -> None:
        torch.nn.utils.clip_grad_norm_(tensors, max_norm)
        optimizer.step()

    return Contender(clip_and_step if max_norm else optimizer.step, arrays.moved)


def optax_step(options: dict[str, Any], arrays: Arrays) -> Contender:
    """AdamW, jitted, parameters and state donated; in arrays of JAX's own."""
    import jax
    import optax

    rule = optax.adamw(options["lr"], weight_decay=options["weight_decay"])

    @partial(jax.jit, donate_argnums=(0, 2))
    def update(p: Any, g: Any, state: Any) -> Any:
        change, state = rule.update(g, state, p)
        return optax.apply_updates(p, change), state

    start, g = arrays.start[0], jax.numpy.array(arrays.gradients[0])
    now = {"p": (p := jax.numpy.array(start)), "state": rule.init(p)}

    def step() -> None:
        now["p"], now["state"] = jax.block_until_ready(update(now["p"], g, now["state"]))

    return Contender(step, lambda: [(np.asarray(now["p"]), start)])


def softmax_cross_entropy(rows: int, classes: int) -> Contest:
    x, y = random(rows * classes, 0).reshape(rows, classes), np.random.default_rng(1).integers(classes, size=rows)
    out = np.empty_like(x)
    ours = loss_contender(partial(sp.losses.softmax_cross_entropy, x, y, out=out))
    return {"ours": ours, "torch": torch_loss("cross_entropy", x, y)}


def mse(rows: int, columns: int, peer: str) -> Contest:
    x, y = (random(rows * columns, i).reshape(rows, columns) for i in range(2))
    theirs = torch_loss("mse_loss", x, y) if peer == "torch" else torch_mse_preallocated(x, y)
    return {"ours": loss_contender(partial(sp.losses.mse, x, y, out=np.empty_like(x))), peer: theirs}


def torch_loss(name: str, x: Array, y: Array) -> Contender:
    """A forward and a backward pass."""
    torch = import_torch()
    loss = getattr(torch.nn.functional, name)
    prediction, target = torch.from_numpy(x).requires_grad_(), torch.from_numpy(y)

    def call() -> Any:
        prediction.grad = None
        value = loss(prediction, target)
        value.backward()
        return value

    return Contender(call, lambda: [(call().item(), np.float32(0)), (prediction.grad.numpy(), np.float32(0))])


def torch_mse_preallocated(x: Array, y: Array) -> Contender:
    """PyTorch without autograd, every result in an array made before.

    `torch.dot` and `vector_norm` need one pass less, but miss the loss of 65 million elements by 0.1 and 1 %.
    """
    torch = import_torch()
    prediction, target = (torch.from_numpy(a.reshape(-1)) for a in (x, y))
    difference, square = torch.empty_like(prediction), torch.empty_like(prediction)

    def call() -> tuple[float, Array]:
        torch.sub(prediction, target, out=difference)
        value = torch.mul(difference, difference, out=square).mean().item()
        difference.mul_(2 / difference.numel())
        return value, difference.numpy().reshape(x.shape)

    return loss_contender(call)
