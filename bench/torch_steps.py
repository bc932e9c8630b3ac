"""`steepest.torch` against PyTorch's fused optimizers, alternating in one process: `python bench/torch_steps.py`.

First AdamW's step alone, then whole training steps (forward, backward, step) of an MLP and of a small transformer.
Printed are medians, and theirs over ours. Needs `pip install torch`.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn

import steepest as sp
from steepest.benchmarks import rounds
from steepest.torch import AdamW

SHAPES = {"1,000": (1, 1000), "200 x 1,000": (200, 1000), "400 x 10,000": (400, 10_000), "1 Mi": (1, 1 << 20),
          "16 Mi": (1, 16 << 20), "64 Mi": (1, 64 << 20)}  # fmt: skip


def alternate(ours: Callable[[], Any], theirs: Callable[[], Any], seconds: float = 3) -> tuple[float, float]:
    """Medians of both, in seconds. Each warms itself for 10 ms, while the other's threads still spin."""
    deadline = time.perf_counter() + seconds
    taken = rounds(
        {"ours": ours, "theirs": theirs},
        lambda times: len(times["ours"]) >= 7 and time.perf_counter() > deadline,
        warm=10e-3,
        turn=5e-3,
    )
    return median(taken["ours"]), median(taken["theirs"])


def step_alone(count: int, n: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    def make(optimizer: Any, **options: Any) -> Any:
        torch.manual_seed(0)
        params = [torch.randn(n).requires_grad_() for _ in range(count)]
        for p in params:
            p.grad = torch.randn(n)
        return optimizer(params, **options)

    ours, theirs = make(AdamW), make(torch.optim.AdamW, fused=True)
    for optimizer in (ours, theirs):
        optimizer.step()
    for p, q in zip(*(o.param_groups[0]["params"] for o in (ours, theirs)), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-5)
    return ours.step, theirs.step


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

    def make(optimizer: Any, **options: Any) -> Callable[[], Any]:
        mine = copy.deepcopy(model)
        stepper = optimizer(mine.parameters(), **options)

        def step() -> None:
            stepper.zero_grad()
            outputs = mine(x)
            nn.functional.cross_entropy(outputs.flatten(0, -2), y.flatten()).backward()
            stepper.step()

        return step

    return make(AdamW), make(torch.optim.AdamW, fused=True)


def main() -> None:
    torch.set_num_threads(sp.get_num_threads())
    chosen = sys.argv[1:]
    contests = {name: lambda shape=shape: step_alone(*shape) for name, shape in SHAPES.items()}
    contests |= {kind: lambda kind=kind: training_step(kind) for kind in ("MLP", "transformer")}
    for name, make in contests.items():
        if not chosen or name in chosen:
            ours, theirs = alternate(*make())
            print(f"{name:<14} ours {1e6 * ours:>10,.1f} us  fused {1e6 * theirs:>10,.1f} us  {theirs / ours:6.2f}x")


if __name__ == "__main__":
    main()
