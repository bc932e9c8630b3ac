"""Linear regression four ways: all of them end at the least-squares solution.

Gradient descent takes the mean gradient of all rows per step (`batch_size=None`), stochastic
descent that of one row, mini-batch that of a few; only the batch size differs. For m rows the
gradient of the mean square is 2/m X'(Xw - y), so the same formula holds for one row as for all.
Where a batch is not the whole, its gradient is noisy even at the solution, and the rate has to fall
to zero for the parameters to come to rest.

    $ python examples/linear_regression.py
                      batch   steps  mean square  distance to least squares
    gradient descent    all     200     0.009965                    2.3e-15
    stochastic            1   80000     0.009965                    5.7e-05
    mini-batch           16    5000     0.009965                    2.6e-05
    Adam                 16    5000     0.009965                    1.8e-04
"""

import argparse

import numpy as np

import steepest as sp
from steepest import nn
from steepest.train import Trainer

parser = argparse.ArgumentParser(description="Linear regression four ways.")
parser.add_argument("--quick", action="store_true", help="fewer epochs")
epochs = 40 if parser.parse_args().quick else 200

rng = np.random.default_rng(0)
rows, features = 400, 5
x = rng.normal(size=(rows, features))
y = x @ rng.normal(size=features) + 3.0 + rng.normal(scale=0.1, size=rows)
solution = np.linalg.lstsq(np.column_stack([x, np.ones(rows)]), y)[0]


def falling(lr: float, batch_size: int) -> sp.schedules.Schedule:
    """From `lr` to zero along half a cosine, over all steps."""
    return sp.schedules.cosine(lr, steps=epochs * rows // batch_size)


ways = {
    "gradient descent": (sp.SGD, 0.3, None),
    "stochastic": (sp.SGD, falling(0.01, 1), 1),
    "mini-batch": (sp.SGD, falling(0.1, 16), 16),
    "Adam": (sp.Adam, falling(0.1, 16), 16),
}
print(f"{'':16}  {'batch':>5}  {'steps':>6}  {'mean square':>11}  {'distance to least squares':>25}")
for name, (rule, lr, batch_size) in ways.items():
    model = nn.Sequential([nn.Dense(1)], input_shape=features, dtype=np.float64)
    optimizer = rule(model.params, lr=lr)
    trainer = Trainer(model, sp.losses.mse, optimizer)
    trainer.fit(x, y, batch_size=batch_size, epochs=epochs, verbose=False)
    loss = trainer.evaluate(x, y)["loss"]
    distance = np.abs(model.params - solution).max()  # the weights, then the bias
    print(f"{name:16}  {batch_size or 'all':>5}  {optimizer.steps:6}  {loss:11.6f}  {distance:25.1e}")
    assert distance < 1e-3, f"{name} has not reached the least-squares solution"
