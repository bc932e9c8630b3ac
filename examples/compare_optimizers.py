"""Nine optimizers on one task: test accuracy over seeds, with its spread.

The task is a 64-32-10 network on handwritten digits and few epochs, so that speed counts. Each
optimizer has the best of four learning rates, a factor of 3 apart, by the mean validation loss of
two seeds that are not among those compared, and the rate falls linearly to zero; then every seed
draws its own split, initial weights and order. Tuned, they come close to each other. With
matplotlib installed, the mean validation losses are plotted.

    $ python examples/compare_optimizers.py
                rate  test accuracy, 10 seeds
    SGD          1.0  96.24% +- 0.97
    momentum     3.0  96.57% +- 0.83
    Nesterov     0.3  96.80% +- 0.83
    Adagrad      0.1  94.82% +- 1.46
    RMSprop     0.01  95.21% +- 1.24
    Adam        0.03  96.57% +- 0.98
    AdamW       0.03  96.55% +- 0.95
    NAdam        0.1  96.46% +- 1.10
    Lion        0.01  95.52% +- 0.82
    plot: compare_optimizers.png
"""

import argparse
import functools
import importlib.util
from collections.abc import Callable

import numpy as np

import steepest as sp
from steepest import datasets, metrics, nn
from steepest.train import Trainer

parser = argparse.ArgumentParser(description="Nine optimizers on one task.")
parser.add_argument("--quick", action="store_true", help="fewer seeds")
parser.add_argument("--plot", default="compare_optimizers.png", help="where to save the plot")
args = parser.parse_args()
seeds, epochs = 2 if args.quick else 10, 5

nesterov = functools.partial(sp.SGD, momentum=0.9, nesterov=True)
optimizers: dict[str, tuple[Callable[..., sp.Optimizer], float]] = {  # and the largest of the rates to try
    "SGD": (sp.SGD, 3.0),
    "momentum": (sp.Momentum, 3.0),
    "Nesterov": (nesterov, 1.0),
    "Adagrad": (sp.Adagrad, 0.3),
    "RMSprop": (sp.RMSprop, 0.03),
    "Adam": (sp.Adam, 0.1),
    "AdamW": (sp.AdamW, 0.1),
    "NAdam": (sp.NAdam, 0.1),
    "Lion": (sp.Lion, 0.03),
}
digits = datasets.load_digits()


def trained(name: str, lr: float, seed: int) -> tuple[float, list[float]]:
    """The accuracy on the test set, and the validation loss of every epoch."""
    train, validation, test = datasets.split(*digits, validation=0.1, test=0.2, seed=seed)
    assert test is not None
    model = nn.Sequential([nn.Dense(32), nn.ReLU(), nn.Dense(10)], input_shape=64, seed=seed)
    optimizer = optimizers[name][0](model.param_groups(), lr=sp.schedules.linear(lr, 0.0, steps=40 * epochs))
    trainer = Trainer(model, sp.losses.softmax_cross_entropy, optimizer, [metrics.accuracy])
    history = trainer.fit(*train, epochs=epochs, validation_data=validation, seed=seed, verbose=False)
    return trainer.evaluate(*test)["accuracy"], history.history["val_loss"]


means, curves = {}, {}
print(f"{'':9}  {'rate':>5}  test accuracy, {seeds} seeds")
for name, (_, largest) in optimizers.items():
    rates = [float(f"{largest / 3**k:.1g}") for k in range(4)]
    losses = {lr: sum(trained(name, lr, seed)[1][-1] for seed in (1000, 1001)) for lr in rates}
    lr = min(losses, key=losses.__getitem__)
    runs = [trained(name, lr, seed) for seed in range(seeds)]
    accuracies = [100 * accuracy for accuracy, _ in runs]
    means[name], curves[name] = np.mean(accuracies), np.mean([losses for _, losses in runs], axis=0)
    print(f"{name:9}  {lr:5}  {means[name]:.2f}% +- {np.std(accuracies):.2f}")

if importlib.util.find_spec("matplotlib"):
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.semilogy(range(1, epochs + 1), curve, label=name)
    axes.set(xlabel="epoch", ylabel="validation loss")
    axes.legend()
    figure.savefig(args.plot)
    print(f"plot: {args.plot}")
else:
    print('no plot: pip install "steepest[plot]"')

assert min(means.values()) > 92
assert max(means.values()) - min(means.values()) < 4
