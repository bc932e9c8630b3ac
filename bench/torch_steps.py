"""`steepest.torch` against PyTorch's fused optimizers, alternating in one process: `python bench/torch_steps.py`.

First AdamW's step alone, then whole training steps (forward, backward, step) of an MLP and of a small transformer.
Both step the same tensors with the same state, for pages of memory differ in speed. Printed are medians, and theirs
over ours with the interval that holds its median with 95 % confidence. Needs `pip install torch`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn

import steepest as sp
from peers import asked, interval
from steepest.benchmarks import rounds
from steepest.torch import AdamW

SHAPES = {"1,000": (1, 1000), "200 x 1,000": (200, 1000), "400 x 10,000": (400, 10_000), "1 Mi": (1, 1 << 20),
          "16 Mi": (1, 16 << 20), "64 Mi": (1, 64 << 20)}  # fmt: skip


CHECKED = 100_000  # elements of a tensor, at most, that the answers are compared on


def alternate(ours: Callable[[], Any], theirs: Callable[[], Any], seconds: float = 3) -> dict[str, list[float]]:
    """Seconds of both, by rounds. Each warms itself for 10 ms, while the other's threads still spin."""
    deadline = time.perf_counter() + seconds
    return rounds(
        {"ours": ours, "theirs": theirs},
        lambda times: len(times["ours"]) >= 7 and time.perf_counter() > deadline,
        warm=10e-3,
        turn=5e-3,
    )


def tensors(count: int, n: int) -> list[Any]:
    torch.manual_seed(0)
    params = [torch.randn(n).requires_grad_() for _ in range(count)]
    for p in params:
        p.grad = torch.randn(n)
    return params


def step_alone(count: int, n: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    a, b = tensors(count, min(n, CHECKED)), tensors(count, min(n, CHECKED))
    for optimizer in (AdamW(a), torch.optim.AdamW(b, fused=True)):
        for _ in range(3):
            optimizer.step()
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    ours, theirs = on_the_same(tensors(count, n))
    return ours.step, theirs.step


def on_the_same(params: list[Any]) -> tuple[Any, Any]:
    """Ours and theirs with one set of parameters, which have gradients, and one state."""
    ours, theirs = AdamW(params), torch.optim.AdamW(params, fused=True)
    ours.step()
    theirs.state.update({p: {**kept, "step": kept["step"].clone()} for p, kept in ours.state.items()})
    return ours, theirs


class Transformer(nn.Module):
    """Two layers of width 128 over 64 tokens of a vocabulary of 1,000."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, 128)
        layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(128, 1000)

    def forward(self, x: Any) -> Any:
        return self.head(self.layers(self.embed(x)))


def training_step(kind: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    torch.manual_seed(0)
    if kind == "transformer":
        model: Any = Transformer()
        x, y = torch.randint(1000, (2, 8, 64))
    else:
        model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
        x, y = torch.randn(32, 784), torch.randint(10, (32,))

    def backward() -> None:
        nn.functional.cross_entropy(model(x).flatten(0, -2), y.flatten()).backward()

    def step(optimizer: Any) -> None:
        optimizer.zero_grad()
        backward()
        optimizer.step()

    backward()
    ours, theirs = on_the_same(list(model.parameters()))
    return partial(step, ours), partial(step, theirs)


def main() -> None:
    contests = {name: lambda shape=shape: step_alone(*shape) for name, shape in SHAPES.items()}
    contests |= {kind: lambda kind=kind: training_step(kind) for kind in ("MLP", "transformer")}
    names = asked(__doc__, list(contests))
    torch.set_num_threads(sp.get_num_threads())
    for name in names:
        taken = alternate(*contests[name]())
        ratios = [theirs / ours for ours, theirs in zip(taken["ours"], taken["theirs"], strict=True)]
        ours, theirs = (1e6 * median(times) for times in taken.values())
        low, high = interval(ratios)
        print(f"{name:<14} ours {ours:>10,.1f} us  fused {theirs:>10,.1f} us  {median(ratios):6.2f}x"
              f"  ({low:.2f} to {high:.2f})", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
