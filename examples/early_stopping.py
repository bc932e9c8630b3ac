"""Early stopping against overfitting: the epoch with the best validation loss is kept.

A large network on few digits, some of them mislabelled, ends up learning the wrong labels by heart:
the training loss goes to zero while the validation loss, having fallen, climbs. Early stopping ends
training once the validation loss has not improved for 5 epochs, and goes back to the best one.

    $ python examples/early_stopping.py
    validation loss
    epoch  without   with
        1    1.012  1.012
        3    0.635  0.635
        5    0.609  0.609
        9    0.577  0.577  kept
       14    0.581  0.581
       30    0.626      -
      100    0.683      -
    test set, without: loss 0.526, accuracy 82.6%
    test set, with   : loss 0.502, accuracy 92.5%
"""

import argparse

import numpy as np

import steepest as sp
from steepest import datasets, metrics, nn
from steepest.callbacks import EarlyStopping
from steepest.train import Trainer

parser = argparse.ArgumentParser(description="Early stopping against overfitting.")
parser.add_argument("--quick", action="store_true", help="a smaller network, fewer epochs")
quick = parser.parse_args().quick

train, validation, test = datasets.split(*datasets.load_digits(), validation=0.1, test=0.6)
assert validation is not None and test is not None
rng = np.random.default_rng(0)
labels = train[1].copy()
wrong = rng.random(len(labels)) < 0.3
labels[wrong] = rng.integers(0, 10, wrong.sum())


def fitted(*callbacks: EarlyStopping) -> Trainer:
    """A new network, trained."""
    units = 128 if quick else 512
    model = nn.Sequential([nn.Dense(units), nn.ReLU(), nn.Dense(10)], input_shape=64)
    optimizer = sp.Adam(model.param_groups(), lr=3e-3)
    trainer = Trainer(model, sp.losses.softmax_cross_entropy, optimizer, [metrics.accuracy])
    epochs = 60 if quick else 100
    trainer.fit(train[0], labels, epochs=epochs, validation_data=validation, callbacks=callbacks, verbose=False)
    return trainer


stopping = EarlyStopping("val_loss", patience=5)
without, with_it = fitted(), fitted(stopping)
losses, stopped = without.history.history["val_loss"], with_it.history.history["val_loss"]
assert stopping.best_epoch is not None and stopping.stopped_epoch is not None

print("validation loss\nepoch  without   with")
for epoch in sorted({0, 2, 4, stopping.best_epoch, stopping.stopped_epoch, 29, len(losses) - 1}):
    value = f"{stopped[epoch]:7.3f}" if epoch < len(stopped) else "      -"
    print(f"{epoch + 1:5}  {losses[epoch]:7.3f}{value}{'  kept' if epoch == stopping.best_epoch else ''}")
before, after = without.evaluate(*test), with_it.evaluate(*test)
for name, scores in (("without", before), ("with", after)):
    print(f"test set, {name:7}: loss {scores['loss']:.3f}, accuracy {scores['accuracy']:.1%}")

assert losses[-1] > 1.1 * min(losses), "there was no overfitting to stop"
assert after["loss"] < before["loss"] and after["accuracy"] > before["accuracy"] + 0.03
