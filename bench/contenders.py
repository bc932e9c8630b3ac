"""Ours and the peers' ways to take an optimizer's step, and to compute a loss with its gradient.

Contenders of one contest start from copies of the same arrays and share the gradients. PyTorch and JAX
are imported where they take part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

import steepest as sp
from steepest.benchmarks import Contender, loss_contender, random

Array = Any
Contest = dict[str, Contender]


def arrays(count: int, n: int, seed: int) -> list[Array]:
    return [random(n, seed + 2 * i) for i in range(count)]


def moved(after: Sequence[Array], start: Sequence[Array]) -> list[tuple[Array, Array]]:
    return list(zip(after, start, strict=True))


def steepest_step(make: Callable[..., sp.Optimizer], start: Sequence[Array], gradients: Sequence[Array]) -> Contender:
    params = [p.copy() for p in start]
    one = len(params) == 1
    optimizer = make(params[0] if one else params)
    return Contender(partial(optimizer.step, gradients[0] if one else gradients), partial(moved, params, start))


def import_torch() -> Any:
    """PyTorch, on as many threads as ours."""
    import torch

    torch.set_num_threads(sp.get_num_threads())
    return torch


def torch_step(
    rule: str, kind: str, start: Sequence[Array], gradients: Sequence[Array], max_norm: float = 0, **options: Any
) -> Contender:
    """`kind` is "fused" or "foreach"; with `max_norm`, `clip_grad_norm_` comes before the step."""
    torch = import_torch()
    tensors = [torch.from_numpy(p.copy()).requires_grad_() for p in start]
    for tensor, gradient in zip(tensors, gradients, strict=True):
        tensor.grad = torch.from_numpy(gradient.copy() if max_norm else gradient)  # clipping changes it
    optimizer = getattr(torch.optim, rule)(tensors, **options, **{kind: True})

    def clip_and_step() -> None:
        torch.nn.utils.clip_grad_norm_(tensors, max_norm)
        optimizer.step()

    after = [tensor.detach().numpy() for tensor in tensors]
    return Contender(clip_and_step if max_norm else optimizer.step, partial(moved, after, start))


def optax_step(start: Array, gradient: Array, lr: float, **options: Any) -> Contender:
    """AdamW, jitted, parameters and state donated."""
    import jax
    import optax

    rule = optax.adamw(lr, **options)

    @partial(jax.jit, donate_argnums=(0, 2))
    def update(p: Any, g: Any, state: Any) -> Any:
        change, state = rule.update(g, state, p)
        return optax.apply_updates(p, change), state

    p, g = jax.numpy.array(start), jax.numpy.array(gradient)
    now = {"p": p, "state": rule.init(p)}

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
    """PyTorch without autograd, every result in an array made before."""
    torch = import_torch()
    prediction, target = (torch.from_numpy(a.reshape(-1)) for a in (x, y))
    difference = torch.empty_like(prediction)

    def call() -> tuple[float, Array]:
        torch.sub(prediction, target, out=difference)
        value = torch.dot(difference, difference).item() / difference.numel()
        difference.mul_(2 / difference.numel())
        return value, difference.numpy().reshape(x.shape)

    return loss_contender(call)
