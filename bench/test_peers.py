"""The optimizers and losses against PyTorch's, on the same number of threads: `pytest bench/test_peers.py`.

Needs `pip install torch`. Answers are compared before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import steepest as sp

torch = pytest.importorskip("torch")

OPTIMIZERS = {"AdamW": {}, "Adam": {}, "SGD": {"momentum": 0.9}, "Adagrad": {}}
MANY = {"4 x 250": (4, 250), "200 x 1,000": (200, 1000), "1,000 x 256": (1000, 256), "400 x 10,000": (400, 10_000)}


@pytest.fixture(autouse=True)
def same_threads() -> None:
    torch.set_num_threads(sp.get_num_threads())


def optimizer_steps(rule: str, shapes: list[int]) -> dict[str, Callable[[], Any]]:
    """A step of ours and of PyTorch's fused and foreach optimizers, over arrays of these sizes."""
    rng = np.random.default_rng(0)
    params, gradients = ([rng.standard_normal(n, np.float32) for n in shapes] for _ in range(2))
    ours = [p.copy() for p in params]
    options: dict[str, Any] = {"lr": 1e-3, **OPTIMIZERS[rule]}
    optimizer = getattr(sp, rule)(ours, **options)
    calls: dict[str, Callable[[], Any]] = {"steepest": lambda: optimizer.step(gradients)}
    for kind in ("fused", "foreach"):
        tensors = [torch.from_numpy(p.copy()).requires_grad_() for p in params]
        for tensor, gradient in zip(tensors, gradients, strict=True):
            tensor.grad = torch.from_numpy(gradient)
        calls[kind] = getattr(torch.optim, rule)(tensors, **options, **{kind: True}).step
        if kind == "fused":
            theirs = tensors
    for _ in range(3):
        for call in calls.values():
            call()
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-5, atol=1e-5)
    return calls


CONTENDERS = ("steepest", "fused", "foreach")


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_step(rule: str, n: int, contender: str, benchmark: Any) -> None:
    benchmark.group = f"{rule} {n:,}"
    benchmark(optimizer_steps(rule, [n])[contender])


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("shapes", MANY)
def test_many_tensors(shapes: str, contender: str, benchmark: Any) -> None:
    count, n = MANY[shapes]
    benchmark.group = f"AdamW {shapes}"
    benchmark(optimizer_steps("AdamW", [n] * count)[contender])


@pytest.mark.parametrize("contender", ["steepest", "torch"])
@pytest.mark.parametrize("shape", [(32, 10), (4096, 10), (4096, 1000), (2048, 32_000)], ids=str)
@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "mse", "binary_cross_entropy"])
def test_loss(loss: str, shape: tuple[int, int], contender: str, benchmark: Any) -> None:
    """The loss and its gradient; PyTorch's is a forward and a backward pass."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape, np.float32)
    y = rng.integers(shape[1], size=shape[0]) if loss == "softmax_cross_entropy" else rng.random(shape, np.float32)
    names = {
        "softmax_cross_entropy": "cross_entropy",
        "mse": "mse_loss",
        "binary_cross_entropy": "binary_cross_entropy_with_logits",
    }
    theirs = getattr(torch.nn.functional, names[loss])
    logits, target, out = torch.from_numpy(x).requires_grad_(), torch.from_numpy(y), np.empty_like(x)

    def torch_loss() -> Any:
        logits.grad = None
        value = theirs(logits, target)
        value.backward()
        return value

    def ours() -> tuple[float, Any]:
        value, gradient = getattr(sp.losses, loss)(x, y, out=out)
        return float(value), gradient

    value, gradient = ours()
    np.testing.assert_allclose(torch_loss().item(), value, rtol=1e-4)
    np.testing.assert_allclose(logits.grad.numpy(), gradient, rtol=1e-4, atol=1e-5 * np.abs(gradient).max())
    benchmark.group = f"{loss} {shape[0]:,} x {shape[1]:,}"
    benchmark(ours if contender == "steepest" else torch_loss)
