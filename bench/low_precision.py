"""Whether state of fewer bytes learns as float32's does: final losses and accuracies over seeds, as a table.

    python bench/low_precision.py > bench/LOW_PRECISION.md

Two cases, Adam and five seeds each. Fashion-MNIST: the 784-128-10 network, batches of 32, 5 epochs, a cosine. Hard: an
embedding of 4,000 rows, of which Zipf's law leaves most without a gradient in most steps, and ten layers of 64 units
under it, from whose loss, scaled by 1e-6, gradients reach down to 1e-10 and less (eps = 1e-20). Numbers
are of the test set or of samples that were not trained on. Differences are between runs of the same seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

import steepest as sp
from peers import asked
from steepest import datasets, metrics, nn
from steepest.train import Trainer

Array = NDArray[Any]
SEEDS = range(5)
STORAGE: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"state_dtype": "bfloat16"},
    "8bit": {"state_dtype": "8bit"},
    "8bit, to nearest": {"state_dtype": "8bit", "seed": None},
}
FOLDER = "/usr/share/datasets/fashion-mnist"


def fashion_mnist(number: int, **options: Any) -> tuple[float, float]:
    train, _, test = datasets.load_idx_folder(FOLDER)
    assert test is not None
    (x, y), (x_test, y_test) = ((a.reshape(-1, 784) / np.float32(255), b) for a, b in (train, test))
    model = nn.Sequential([nn.Dense(128), nn.ReLU(), nn.Dense(10)], input_shape=784, seed=number)
    epochs = 5
    rate = sp.schedules.cosine(1e-3, steps=epochs * (len(x) // 32))
    optimizer = sp.Adam(model.param_groups(), lr=rate, **options)
    trainer = Trainer(model, sp.losses.softmax_cross_entropy, optimizer, [metrics.accuracy])
    trainer.fit(x, y, epochs=epochs, batch_size=32, seed=number, verbose=False)
    result = trainer.evaluate(x_test, y_test)
    return result["loss"], result["accuracy"]


ROWS, WIDTH, DEPTH, CLASSES, TOKENS = 4000, 64, 10, 10, 6
STEPS, BATCH, SCALE = 2000, 64, np.float32(1e-6)


def tokens(rng: np.random.Generator, n: int) -> Array:
    return np.minimum(rng.zipf(1.3, (n, TOKENS)) - 1, ROWS - 1)


def hard(number: int, **options: Any) -> tuple[float, float]:
    rng = np.random.default_rng(number)
    teacher = np.random.default_rng(99).standard_normal((ROWS, CLASSES))
    embedding = (rng.standard_normal((ROWS, WIDTH)) / np.sqrt(TOKENS)).astype(np.float32)
    weights = [np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0].astype(np.float32) for _ in range(DEPTH)]
    head = (rng.standard_normal((WIDTH, CLASSES)) / 8).astype(np.float32)
    optimizer = sp.Adam([embedding, *weights, head], lr=sp.schedules.cosine(2e-3, STEPS), eps=1e-20, **options)
    gradient = np.zeros_like(embedding)

    def forward(rows: Array) -> tuple[list[Array], Array]:
        layers = [embedding[rows].sum(axis=1)]
        for w in weights:
            layers.append(np.tanh(layers[-1] @ w))
        return layers, layers[-1] @ head

    for _ in range(STEPS):
        rows = tokens(rng, BATCH)
        layers, logits = forward(rows)
        _, d = sp.losses.softmax_cross_entropy(logits, teacher[rows].sum(axis=1).argmax(axis=1))
        d *= SCALE
        gradients = [layers[-1].T @ d]
        d = d @ head.T
        for w, x, y in zip(weights[::-1], layers[-2::-1], layers[:0:-1], strict=True):
            d = d * (1 - y * y)
            gradients.append(x.T @ d)
            d = d @ w.T
        gradient[...] = 0
        np.add.at(gradient, rows, d[:, None, :])
        optimizer.step([gradient, *gradients[::-1]])
    rows = tokens(np.random.default_rng(7), 5000)
    _, logits = forward(rows)
    labels = teacher[rows].sum(axis=1).argmax(axis=1)
    loss, _ = sp.losses.softmax_cross_entropy(logits, labels)
    return loss, float((logits.argmax(axis=1) == labels).mean())


def spread(values: Array, digits: int) -> str:
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}"


def rows_of(name: str, case: Callable[..., tuple[float, float]]) -> Iterator[str]:
    base: Array | None = None
    for storage, options in STORAGE.items():
        results = np.array([case(number, **options) for number in SEEDS])
        if base is None:
            base = results
        paired = results - base
        cells = [spread(results[:, 0], 4), spread(100 * results[:, 1], 2)]
        cells += [spread(paired[:, 0], 4), spread(100 * paired[:, 1], 2)] if storage != "float32" else ["", ""]
        yield f"| {name} | {storage} | {' | '.join(cells)} |"


def main() -> None:
    cases = {"Fashion-MNIST": fashion_mnist, "Hard": hard}
    names = asked(__doc__, list(cases))
    print("# State in fewer bytes: what it learns\n")
    print("Made by `python bench/low_precision.py`, which says what the cases are; five seeds, mean ± deviation.\n")
    print("| Case | State | Loss | Accuracy, % | Loss less float32's, same seed | Accuracy less float32's, points |")
    print("|---|---|---:|---:|---:|---:|")
    for name in names:
        for row in rows_of(name, cases[name]):
            print(row, flush=True)


if __name__ == "__main__":
    main()
