"""A training step of a 784-128-10 network, batch 32, Adam: ours, and the peers that are installed.

    python bench/train_step.py [--centred] [--starts N] [--rounds N] [--only PATTERN ...] [--json FILE]

Time per step over epochs of 200 batches, shuffling and loss included. Every contender lives in a process
of its own, so that no BLAS or OpenMP of one holds the cores of another; they take turns after a pause, each warming
itself for a fifth of an epoch before it is timed for one. Printed are the medians, and the median of
the rounds' ratios to `Trainer.fit` with the interval that holds it with 95 % confidence. All processes are
started several times, for the memory that one is given may be faster than another's. Every contender
must have learned: at each start its loss must have fallen.

Inputs lie between 0 and 1, and steps of Adam that all go one way silence nine in ten hidden units within an epoch. With
`--centred` inputs lie around 0, and half of the units are active.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

SAMPLES, BATCH = 6400, 32
PAUSE = 0.2  # seconds between turns: the last contender's workers spin for a while, 27 ms in OpenBLAS' case
OURS = "steepest Trainer.fit"

Array = Any
Train = Callable[[Array, Array], float]  # one epoch over these; the mean loss


def data(centred: bool = False) -> tuple[Array, Array]:
    """Ten classes that a linear map tells apart."""
    rng = np.random.default_rng(0)
    x = rng.random((SAMPLES, 784), np.float32)
    around_0 = x - np.float32(0.5)
    return around_0 if centred else x, (around_0 @ rng.normal(size=(784, 10))).argmax(1)


def steepest_model() -> tuple[Any, Any, Any]:
    import steepest as sp
    from steepest import nn

    model = nn.Sequential([nn.Dense(128), nn.ReLU(), nn.Dense(10)], 784)
    return model, sp.losses.softmax_cross_entropy, sp.Adam(model.param_groups())


def steepest_fit() -> Train:
    from steepest.train import Trainer

    trainer = Trainer(*steepest_model())
    return lambda x, y: trainer.fit(x, y, batch_size=BATCH, epochs=1, verbose=False).history["loss"][-1]


def steepest_loop() -> Train:
    model, loss, optimizer = steepest_model()
    rng, gradients = np.random.default_rng(0), model.gradients()

    def epoch(x: Array, y: Array) -> float:
        order, total = rng.permutation(len(x)), 0.0
        for i in range(0, len(x), BATCH):
            rows = order[i : i + BATCH]
            outputs = model.forward(x[rows], train=True)
            value, gradient = loss(outputs, y[rows], out=outputs)
            model.backward(gradient)
            optimizer.step(gradients)
            total += value
        return total / (len(x) / BATCH)

    return epoch


def torch_eager(kind: str, threads: int, compiled: bool = False) -> Train:
    import torch
    from torch import nn

    torch.set_num_threads(threads)
    model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer, loss = torch.optim.Adam(model.parameters(), **{kind: True}), nn.CrossEntropyLoss()
    loss_of = lambda x, y: loss(model(x), y)  # noqa: E731
    if compiled:
        loss_of = torch.compile(loss_of)

    def epoch(x: Array, y: Array) -> float:
        x, y = torch.from_numpy(x), torch.from_numpy(y)
        order, total = torch.randperm(len(x)), 0.0
        for i in range(0, len(x), BATCH):
            rows = order[i : i + BATCH]
            optimizer.zero_grad()
            value = loss_of(x[rows], y[rows])
            value.backward()
            optimizer.step()
            total += value.item()
        return total / (len(x) / BATCH)

    return epoch


def jax_scan() -> Train:
    """Adam as optax has it, written out; the whole epoch is one jitted call with donated arguments."""
    import jax
    from jax import numpy as jnp

    def loss(p: Any, x: Any, y: Any) -> Any:
        logits = jax.nn.relu(x @ p["W"] + p["b"]) @ p["V"] + p["c"]
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1))

    @partial(jax.jit, donate_argnums=0)
    def epoch(state: Any, x: Any, y: Any, key: Any) -> Any:
        def step(state: Any, rows: Any) -> Any:
            p, m, v, t = state
            value, g = jax.value_and_grad(loss)(p, x[rows], y[rows])
            t = t + 1
            m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
            v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
            p = jax.tree.map(
                lambda p, m, v: p - 1e-3 * (m / (1 - 0.9**t)) / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8), p, m, v
            )
            return (p, m, v, t), value

        order = jax.random.permutation(key, len(x)).reshape(-1, BATCH)
        state, values = jax.lax.scan(step, state, order)
        return state, values.mean()

    rng = np.random.default_rng(0)
    shapes = {"W": (784, 128), "b": (128,), "V": (128, 10), "c": (10,)}
    p = {k: jnp.array(rng.normal(0, 0.05 if len(s) > 1 else 0, s), jnp.float32) for k, s in shapes.items()}
    zeros = partial(jax.tree.map, jnp.zeros_like)
    now: dict[str, Any] = {"state": (p, zeros(p), zeros(p), jnp.float32(0)), "key": jax.random.key(0), "data": {}}

    def run(x: Array, y: Array) -> float:
        x, y = now["data"].setdefault(len(x), (jnp.array(x), jnp.array(y)))
        now["key"], key = jax.random.split(now["key"])
        now["state"], value = epoch(now["state"], x, y, key)
        return float(value)

    return run


def sklearn() -> Train:
    from sklearn.neural_network import MLPClassifier

    model = MLPClassifier((128,), batch_size=BATCH, alpha=0)

    def epoch(x: Array, y: Array) -> float:
        model.partial_fit(x, y, classes=np.arange(10))
        return float(model.loss_)

    return epoch


def keras_fit(backend: str) -> Train:
    os.environ["KERAS_BACKEND"] = backend
    import keras

    layers = [keras.Input((784,)), keras.layers.Dense(128, "relu"), keras.layers.Dense(10)]
    model = keras.Sequential(layers)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return lambda x, y: float(model.fit(x, y, batch_size=BATCH, verbose=0).history["loss"][0])


CONTENDERS: dict[str, tuple[tuple[str, ...], Callable[[], Train]]] = {  # the packages that it needs
    OURS: (("steepest",), steepest_fit),
    "steepest, loop of one's own": (("steepest",), steepest_loop),
    **{
        f"PyTorch {kind}, {n} thread{'s' * (n > 1)}": (("torch",), partial(torch_eager, kind, n))
        for kind in ("fused", "foreach")
        for n in (1, 2)
    },
    "PyTorch compiled, fused, 2 threads": (("torch",), partial(torch_eager, "fused", 2, compiled=True)),
    "JAX lax.scan": (("jax",), jax_scan),
    "scikit-learn partial_fit": (("sklearn",), sklearn),
    **{
        f"Keras fit, {name}": (("keras", name.lower()), partial(keras_fit, name.lower()))
        for name in ("TensorFlow", "JAX")
    },
}


def serve(name: str, centred: bool) -> None:
    """A contender's process: for every line it reads, it prints the time of a step and the loss."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes elsewhere
    train, (x, y) = CONTENDERS[name][1](), data(centred)
    part = SAMPLES // 5
    train(x, y)
    for _ in sys.stdin:
        time.sleep(PAUSE)
        train(x[:part], y[:part])
        start = time.perf_counter()
        loss = train(x, y)
        print(json.dumps([(time.perf_counter() - start) / (SAMPLES / BATCH), loss]), file=answers)


def measure(names: list[str], rounds: int, centred: bool) -> dict[str, list[tuple[float, float]]]:
    """The seconds per step and the losses of every contender that can be run, round by round."""
    command = [sys.executable, __file__, *(["--centred"] if centred else []), "--serve"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    processes = {name: subprocess.Popen([*command, name], text=True, bufsize=1, **pipes) for name in names}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    try:
        for turn in range(rounds + 1):  # the first warms up
            for name, process in list(processes.items()):
                with contextlib.suppress(BrokenPipeError):  # it died before
                    print("epoch", file=process.stdin, flush=True)
                if not (answer := process.stdout.readline()):
                    print(f"{name}: failed", file=sys.stderr)
                    del processes[name], taken[name]
                elif turn:
                    taken[name].append(tuple(json.loads(answer)))
    finally:
        for process in processes.values():
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()
    for name, answers in taken.items():
        (_, first), *_, (_, last) = answers
        if not last < first:
            raise RuntimeError(f"{name} does not learn: its loss went from {first} to {last}")
    return taken


def report(taken: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    from peers import interval

    results = {}
    for name, rounds in taken.items():
        ratios = [theirs[0] / ours[0] for theirs, ours in zip(rounds, taken[OURS], strict=True)]
        results[name] = {
            "seconds": median(seconds for seconds, _ in rounds),
            "ratio": median(ratios),
            "interval": interval(ratios),
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--centred", action="store_true", help="inputs around 0 instead of above it")
    parser.add_argument("--starts", type=int, default=3, help="of all processes (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=6, help="epochs of each contender a start (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="contenders beside ours")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go")
    parser.add_argument("--serve", metavar="NAME", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.centred)
        return
    chosen = [name for name in CONTENDERS if name == OURS or any(fnmatch.fnmatch(name, p) for p in args.only)]
    missing = [name for name in chosen if not all(map(importlib.util.find_spec, CONTENDERS[name][0]))]
    taken: dict[str, list[tuple[float, float]]] = {}
    runnable = [name for name in chosen if name not in missing]
    for _ in range(args.starts):
        for name, rounds in measure(runnable, args.rounds, args.centred).items():
            taken.setdefault(name, []).extend(rounds)
    results = report({name: rounds for name, rounds in taken.items() if len(rounds) == len(taken[OURS])})
    print("784-128-10, batch 32, Adam: us per step, and their time over ours (95 % interval)")
    for name, result in results.items():
        low, high = result["interval"]
        print(f"{name:<36}{1e6 * result['seconds']:>8.0f}{result['ratio']:>8.2f}  ({low:.2f} to {high:.2f})")
    for name in missing:
        print(f"{name:<36}not installed")
    if args.json:
        args.json.write_text(json.dumps({"results": results, "missing": missing}, indent=1))


if __name__ == "__main__":
    main()
