"""A convolution network on Fashion-MNIST: at least 90.5% of the test images right after 5 epochs.

32 filters of 3 x 3, relu, the largest of every 2 x 2, 128 units with relu, dropout of one half, 10
outputs. Adam with a rate that warms up and falls along a cosine. The rate was chosen with
`--validate`, which holds out a tenth of the training images; the test images are looked at once, at
the end.

    $ python examples/fashion_mnist_conv.py
    ...
    epoch 1/5  loss 0.5326  accuracy 0.8088  lr 0
    epoch 2/5  loss 0.3342  accuracy 0.8787  lr 0.003758
    epoch 3/5  loss 0.2758  accuracy 0.8985  lr 0.002802
    epoch 4/5  loss 0.2287  accuracy 0.9152  lr 0.001506
    epoch 5/5  loss 0.1995  accuracy 0.9261  lr 0.0004196

    test accuracy 91.32%, loss 0.246
"""

import argparse
import time

import numpy as np

import steepest as sp
from steepest import datasets, metrics, nn
from steepest.train import Trainer

parser = argparse.ArgumentParser(description="A convolution network on Fashion-MNIST.")
parser.add_argument("--quick", action="store_true", help="fewer images and epochs")
parser.add_argument("--validate", action="store_true", help="hold out a tenth for validation; no test")
parser.add_argument("--lr", type=float, default=4e-3)
parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist", help="folder of the four IDX files")
args = parser.parse_args()
try:
    train, _, test = datasets.load_idx_folder(args.data)
except FileNotFoundError as error:
    parser.exit(2, f"{error}\nDebian and Ubuntu bring it: apt-get install dataset-fashion-mnist\n")
assert test is not None

rows, epochs = (2_000, 2) if args.quick else (60_000, 5)
x, y = train[0][:rows, :, :, None] / np.float32(255), train[1][:rows]
model = nn.Sequential(
    [
        *(nn.Conv2D(32, 3), nn.ReLU(), nn.MaxPool2D(2)),
        *(nn.Flatten(), nn.Dense(128), nn.ReLU(), nn.Dropout(0.5)),
        nn.Dense(10),
    ],
    input_shape=(28, 28, 1),
)
print(model.summary(), end="\n\n")
steps = epochs * rows // 64
optimizer = sp.Adam(model.param_groups(), lr=sp.schedules.cosine(args.lr, steps, warmup=steps // 20))
# One BLAS thread: two gain a quarter on idle cores, and lose many times that where another process wants them.
trainer = Trainer(model, sp.losses.softmax_cross_entropy, optimizer, [metrics.accuracy], blas_threads=1)
start = time.perf_counter()
trainer.fit(x, y, batch_size=64, epochs=epochs, validation_split=0.1 * args.validate)
print(f"{(time.perf_counter() - start) / epochs:.1f} s per epoch")

if not args.validate:
    x, y = test[0][:rows, :, :, None] / np.float32(255), test[1][:rows]
    scores = trainer.evaluate(x, y)
    print(f"\ntest accuracy {scores['accuracy']:.2%}, loss {scores['loss']:.3f}")
    assert scores["accuracy"] >= (0.70 if args.quick else 0.905)
