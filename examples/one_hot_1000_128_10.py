"""A 1000-128-10 network on one-hot labels, a tenth of the rows held out for validation.

The rows are sorted by class, as data often are. `validation_split` draws its rows at random, so
every class is among them; the last tenth would hold one class alone, which training had never seen.
One-hot labels and class numbers are the same to the loss.

    $ python examples/one_hot_1000_128_10.py
    layer               output  parameters
    Dense(units=128)    (128,)     128,128
    ReLU()              (128,)           0
    Dense(units=10)     (10,)        1,290
    total                          129,418

    epoch  1/10  loss 0.9144  accuracy 0.7267  lr 0.001  val_loss 0.2287  val_accuracy 0.958
    epoch  2/10  loss 0.03526  accuracy 0.9998  lr 0.001  val_loss 0.155  val_accuracy 0.97
    ...
    epoch  9/10  loss 0.001731  accuracy 1  lr 0.001  val_loss 0.08292  val_accuracy 0.976
    epoch 10/10  loss 0.001406  accuracy 1  lr 0.001  val_loss 0.07999  val_accuracy 0.978

    classes in the validation set: 10
    loss of one-hot labels 0.009104551, of class numbers 0.009104551
"""

import argparse

import numpy as np

import steepest as sp
from steepest import metrics, nn
from steepest.train import Trainer, split_rows

parser = argparse.ArgumentParser(description="A 1000-128-10 network on one-hot labels.")
parser.add_argument("--quick", action="store_true", help="fewer rows and epochs")
quick = parser.parse_args().quick

rng = np.random.default_rng(0)
classes = np.repeat(np.arange(10), 200 if quick else 500)
centres = rng.normal(scale=0.15, size=(10, 1000))
x = (centres[classes] + rng.normal(size=(len(classes), 1000))).astype(np.float32)
one_hot = np.eye(10, dtype=np.float32)[classes]

model = nn.Sequential([nn.Dense(128), nn.ReLU(), nn.Dense(10)], input_shape=1000)
optimizer = sp.Adam(model.param_groups(), lr=1e-3)
trainer = Trainer(model, sp.losses.softmax_cross_entropy, optimizer, [metrics.accuracy])
print(model.summary(), end="\n\n")
history = trainer.fit(x, one_hot, batch_size=32, epochs=4 if quick else 10, validation_split=0.1).history

_, held_out = split_rows(one_hot, 0.1)  # the rows that fit held out
by_one_hot, by_number = trainer.evaluate(x, one_hot), trainer.evaluate(x, classes)
print(f"\nclasses in the validation set: {len(np.unique(classes[held_out]))}")
print(f"loss of one-hot labels {by_one_hot['loss']:.9f}, of class numbers {by_number['loss']:.9f}")

assert len(np.unique(classes[held_out])) == 10
assert abs(by_one_hot["loss"] - by_number["loss"]) < 1e-6
assert history["val_accuracy"][-1] >= (0.8 if quick else 0.95)
