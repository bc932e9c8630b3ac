"""A step beside other work: does a second thread still help when somebody else has just used both cores?"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

import steepest as sp
from contenders import Contest
from steepest.benchmarks import Contender, random

THREADS = 2


def matmul() -> Callable[[], object]:
    """NumPy's product of a 256 x 784 and a 784 x 512 matrix."""
    a, b = random(256 * 784, 2).reshape(256, 784), random(784 * 512, 3).reshape(784, 512)
    c = np.empty((256, 512), np.float32)
    threadpool_limits(THREADS, "blas")
    return lambda: np.matmul(a, b, out=c)


def torch() -> Callable[[], object]:
    """PyTorch's forward and backward pass through 784-512-10, batch 256."""
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(THREADS)
    model = torch.nn.Sequential(torch.nn.Linear(784, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10))
    x, y = torch.rand(256, 784), torch.randint(10, (256,))
    return lambda: torch.nn.functional.cross_entropy(model(x), y).backward()


OTHERS = {"matmul": matmul, "torch": torch}


def contest(other: str, torch_after: bool, n: int) -> tuple[Contest, Callable[[str], object]]:
    """AdamW's step on two threads and on one, and what precedes each of them."""
    if torch_after:
        importlib.import_module("torch")
    work = OTHERS[other]()
    optimizer, gradient = sp.AdamW(random(n, 0)), random(n, 1)
    step = Contender(lambda: optimizer.step(gradient))  # one optimizer: there is nothing to compare

    def before(name: str) -> None:
        sp.set_num_threads(THREADS if name == "ours" else 1)
        work()

    return {"ours": step, "one thread": step}, before
