"""A 784-128-10 network on Fashion-MNIST: at least 88% of the test images right.

Relu, Adam, cross-entropy of class numbers, batches of 32, 10 epochs, over which the learning rate
falls to zero along a cosine. A tenth of the training images is held out for validation; the test
images are looked at once, at the end.

    $ python examples/fashion_mnist_dense.py
    epoch  1/10  loss 0.5025  accuracy 0.8231  lr 0.001  val_loss 0.382  val_accuracy 0.8627
    epoch  2/10  loss 0.3761  accuracy 0.8636  lr 0.0009755  val_loss 0.3707  val_accuracy 0.8602
    ...
    epoch  9/10  loss 0.2284  accuracy 0.9165  lr 9.527e-05  val_loss 0.2862  val_accuracy 0.8932
    epoch 10/10  loss 0.2244  accuracy 0.9185  lr 2.434e-05  val_loss 0.2859  val_accuracy 0.893

    test accuracy 88.56%, loss 0.319
"""

import argparse

import numpy as np

import steepest as sp
from steepest import datasets, metrics, nn
from steepest.train import Trainer

parser = argparse.ArgumentParser(description="A 784-128-10 network on Fashion-MNIST.")
parser.add_argument("--quick", action="store_true", help="fewer images and epochs")
parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist", help="folder of the four IDX files")
args = parser.parse_args()
try:
    train, _, test = datasets.load_idx_folder(args.data)
except FileNotFoundError as error:
    parser.exit(2, f"{error}\nDebian and Ubuntu bring it: apt-get install dataset-fashion-mnist\n")
assert test is not None

rows, epochs = (5_000, 3) if args.quick else (60_000, 10)
x, y = train[0][:rows].reshape(-1, 784) / np.float32(255), train[1][:rows]
model = nn.Sequential([nn.Dense(128), nn.ReLU(), nn.Dense(10)], input_shape=784)
schedule = sp.schedules.cosine(1e-3, steps=epochs * rows * 9 // 10 // 32)
optimizer = sp.Adam(model.param_groups(), lr=schedule)
trainer = Trainer(model, sp.losses.softmax_cross_entropy, optimizer, [metrics.accuracy])
trainer.fit(x, y, batch_size=32, epochs=epochs, validation_split=0.1)

scores = trainer.evaluate(test[0].reshape(-1, 784) / np.float32(255), test[1])
print(f"\ntest accuracy {scores['accuracy']:.2%}, loss {scores['loss']:.3f}")
assert scores["accuracy"] >= (0.75 if args.quick else 0.88)
