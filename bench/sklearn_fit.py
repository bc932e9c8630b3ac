"""`steepest.sklearn.MLPClassifier.fit` against scikit-learn's, alternating in one process.

    python bench/sklearn_fit.py [--rounds N] [--batch-sizes N ...] [--data FOLDER]

10,000 images of Fashion-MNIST, one hidden layer of 128, 10 epochs, everything else as it comes; then 4,000 documents of
40 words out of 20,000, counted in a sparse matrix, with a hidden layer of 100 and batches of 200. Both get the same
arrays, so the same dtype. In every round each of them fits anew, after a pause in which the other's threads fall
asleep. Printed are the medians, and the median of the rounds' ratios with the interval that holds it with 95 %
confidence. Each seed must give both the same accuracy on test data, within a point on the average.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

import numpy as np
import scipy.sparse
import sklearn.neural_network
from sklearn.exceptions import ConvergenceWarning

import steepest.sklearn
from peers import interval
from steepest import datasets

ROWS, EPOCHS, PAUSE = 10_000, 10, 0.1
KINDS = {"ours": steepest.sklearn.MLPClassifier, "theirs": sklearn.neural_network.MLPClassifier}


def documents(rows: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """Counts of words, a third of which are of the document's class, and others as frequent as Zipf's law has it."""
    words, length, classes = 20_000, 40, 10
    frequency = 1 / np.arange(1, words + 1)
    drawn = rng.choice(words, (rows, length), p=frequency / frequency.sum())
    labels = rng.integers(0, classes, rows)
    own = labels[:, None] + classes * rng.integers(0, words // classes, (rows, length))
    drawn = np.where(rng.random((rows, length)) < 1 / 3, own, drawn)
    places = np.repeat(np.arange(rows), length), drawn.reshape(-1)
    return scipy.sparse.csr_array((np.ones(rows * length), places), (rows, words)), labels


def measure(
    train: Any, test: Any, units: int, batch_size: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of every fit, and the mean accuracy."""
    taken: dict[str, list[float]] = {name: [] for name in KINDS}
    scores: dict[str, list[float]] = {name: [] for name in KINDS}
    for seed in range(rounds + 1):  # the first warms up
        for name, kind in KINDS.items():
            model = kind((units,), batch_size=batch_size, max_iter=EPOCHS, random_state=seed)
            time.sleep(PAUSE)
            start = time.perf_counter()
            model.fit(*train)
            if seed:
                taken[name].append(time.perf_counter() - start)
                scores[name].append(model.score(*test))
    return taken, {name: fmean(values) for name, values in scores.items()}


def report(what: str, dtype: Any, batch_size: int, taken: dict[str, list[float]], accuracy: dict[str, float]) -> None:
    if abs(accuracy["ours"] - accuracy["theirs"]) > 0.01:
        raise RuntimeError(f"they do not learn the same: {accuracy}")
    ratios = [theirs / ours for ours, theirs in zip(taken["ours"], taken["theirs"], strict=True)]
    low, high = interval(ratios)
    ours, theirs = (median(times) for times in taken.values())
    print(
        f"{what:<10}{dtype.__name__:<8}{batch_size:>6}{ours:>8.3f}{theirs:>8.3f}{median(ratios):>7.2f}"
        f"  ({low:.2f} to {high:.2f})   {accuracy['ours']:.2%} {accuracy['theirs']:.2%}",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="fits of each (default: %(default)s)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[200, 32], metavar="N")
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist", help="folder of the four IDX files")
    args = parser.parse_args(arguments)
    try:
        (x, y), _, test = datasets.load_idx_folder(args.data)
    except FileNotFoundError as error:
        sys.exit(f"{error}\nDebian and Ubuntu bring it: apt-get install dataset-fashion-mnist")
    assert test is not None
    warnings.simplefilter("ignore", ConvergenceWarning)  # 10 epochs are what is compared
    words = [documents(rows, np.random.default_rng(rows)) for rows in (4_000, 2_000)]
    print("data      dtype    batch   ours  theirs  ratio  (95 %)   accuracy of ours, theirs; seconds per fit")
    for dtype in (np.float32, np.float64):
        rows = [images.reshape(len(images), -1) / dtype(255) for images in (x[:ROWS], test[0])]
        for batch_size in args.batch_sizes:
            taken, accuracy = measure((rows[0], y[:ROWS]), (rows[1], test[1]), 128, batch_size, args.rounds)
            report("images", dtype, batch_size, taken, accuracy)
    for dtype in (np.float32, np.float64):
        taken, accuracy = measure(*((counts.astype(dtype), labels) for counts, labels in words), 100, 200, args.rounds)
        report("words", dtype, 200, taken, accuracy)


if __name__ == "__main__":
    main()
