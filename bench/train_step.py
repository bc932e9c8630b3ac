"""A training step of a 784-128-10 network, batch 32, Adam: ours, and the peers that are installed.

    python bench/train_step.py

Time per step over whole epochs of 200 batches, shuffling included; medians of some epochs. Every
contender runs in a process of its own.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

import numpy as np

SAMPLES, BATCH = 6400, 32


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.random((SAMPLES, 784), np.float32), rng.integers(0, 10, SAMPLES)


def steepest() -> Callable[[], object]:
    """`Trainer.fit` with all its checks and logs."""
    import steepest as sp
    from steepest import nn
    from steepest.train import Trainer

    x, y = data()
    model = nn.Sequential([nn.Dense(128), nn.ReLU(), nn.Dense(10)], 784)
    trainer = Trainer(model, sp.losses.softmax_cross_entropy, sp.Adam(model.param_groups()))
    return lambda: trainer.fit(x, y, batch_size=BATCH, epochs=1, verbose=False)


def steepest_loop() -> Callable[[], object]:
    """A loop of one's own over the same model: forward, loss, backward, step."""
    import steepest as sp
    from steepest import nn

    x, y = data()
    model = nn.Sequential([nn.Dense(128), nn.ReLU(), nn.Dense(10)], 784)
    optimizer, rng = sp.Adam(model.param_groups()), np.random.default_rng(0)

    def epoch() -> None:
        order = rng.permutation(SAMPLES)
        for i in range(0, SAMPLES, BATCH):
            rows = order[i : i + BATCH]
            outputs = model.forward(x[rows], train=True)
            _, gradient = sp.losses.softmax_cross_entropy(outputs, y[rows], out=outputs)
            model.backward(gradient)
            optimizer.step(model.gradients())

    return epoch


def torch() -> Callable[[], object]:
    """Eager PyTorch with the fused Adam."""
    import torch
    from torch import nn

    x, y = map(torch.from_numpy, data())
    model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer, loss = torch.optim.Adam(model.parameters(), fused=True), nn.CrossEntropyLoss()

    def epoch() -> None:
        order = torch.randperm(SAMPLES)
        for i in range(0, SAMPLES, BATCH):
            rows = order[i : i + BATCH]
            optimizer.zero_grad()
            loss(model(x[rows]), y[rows]).backward()
            optimizer.step()

    return epoch


def sklearn() -> Callable[[], object]:
    """`MLPClassifier.partial_fit`: an epoch per call."""
    from sklearn.neural_network import MLPClassifier

    x, y = data()
    model = MLPClassifier((128,), batch_size=BATCH, alpha=0)
    return lambda: model.partial_fit(x, y, classes=np.arange(10))


CONTENDERS = {run.__name__: run for run in (steepest, steepest_loop, torch, sklearn)}


def main() -> None:
    print("784-128-10, batch 32, Adam: us per step")
    for name, make in CONTENDERS.items():
        if name in ("torch", "sklearn") and not importlib.util.find_spec(name):
            print(f"{name:<16} not installed")
            continue
        took = subprocess.run([sys.executable, __file__, name], check=True, capture_output=True, text=True).stdout
        print(f"{name:<16}{float(took):>8.0f}   {make.__doc__}", flush=True)


def measure(epoch: Callable[[], object]) -> float:
    epoch()
    times = []
    for _ in range(7):
        start = time.perf_counter()
        epoch()
        times.append((time.perf_counter() - start) / (SAMPLES / BATCH))
    return 1e6 * median(times)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(measure(CONTENDERS[sys.argv[1]]()))
    else:
        main()
