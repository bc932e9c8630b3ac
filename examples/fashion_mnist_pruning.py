"""Pruning two networks on Fashion-MNIST: 80% of the weights, then half of the units, with random ones beside.

`--network dense` is 784-128-10, `--network conv` the convolution network of `fashion_mnist_conv.py`. The
trained network is pruned and trained on for a few epochs, gradually (weights) or after it lost its units at once;
`shrink` then cuts the dead units out. The first row after the trained one was trained on as
long without pruning. Zipped sizes are those of the file by deflate: safetensors keeps zeros as they are.

    $ python examples/fashion_mnist_pruning.py
                                          not zero       KB KB zipped  accuracy  us, 256    us, 1
    as trained                             101,770    408.6     379.4    89.02%      208       12
    trained on for 5 epochs                101,770    408.6     379.5    89.30%      235       14
    80% magnitude, not trained on           20,464    408.6      97.1    59.77%      212       11
    80% random, trained on                  20,464    408.6     104.3    84.67%      355        8
    80% magnitude by layer, trained on      20,464    408.6      97.8    87.57%      338        9
    80% magnitude overall, trained on       20,464    408.6      97.4    88.89%      198        9
    half the units, random                  50,890    205.1     190.2    88.81%      124        5
    half the units, L1                      50,890    205.1     190.1    89.00%      115        5
    half the units, L2                      50,890    205.1     190.1    88.85%      186        7
"""

import argparse
import copy
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

import steepest as sp
from steepest import compress, datasets, metrics, nn
from steepest.train import Trainer

parser = argparse.ArgumentParser(description="Pruning networks on Fashion-MNIST.")
parser.add_argument("--quick", action="store_true", help="fewer images and epochs")
parser.add_argument("--network", choices=("dense", "conv"), default="dense")
parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist", help="folder of the four IDX files")
args = parser.parse_args()
try:
    train, _, test = datasets.load_idx_folder(args.data)
except FileNotFoundError as error:
    parser.exit(2, f"{error}\nDebian and Ubuntu bring it: apt-get install dataset-fashion-mnist\n")
assert test is not None

dense = args.network == "dense"
rows = (5_000 if dense else 1_000) if args.quick else 60_000
epochs, more = (3, 2) if args.quick else (10, 5) if dense else (5, 3)
shape = (-1, 784) if dense else (-1, 28, 28, 1)
(x, y), (x_test, y_test) = ((a.reshape(shape) / np.float32(255), b) for a, b in (train, test))
x, y, batch = x[:rows], y[:rows], 32 if dense else 64
steps = more * -(-rows // batch)  # of training on


def fit(model, epochs, lr, callbacks=()):
    schedule = sp.schedules.cosine(lr, steps=epochs * -(-rows // batch))
    optimizer = sp.Adam(model.param_groups(), lr=schedule)
    trainer = Trainer(model, sp.losses.softmax_cross_entropy, optimizer, blas_threads=1)
    trainer.fit(x, y, batch_size=batch, epochs=epochs, callbacks=callbacks, verbose=False)
    return model


def pruned(amount, **options):
    """A copy of the trained network, pruned and trained on; if by units, what is left of it."""
    model = copy.deepcopy(trained)
    pruning = compress.prune(model, amount, **options)
    fit(model, more, 5e-4, [pruning])
    return compress.shrink(model) if options.get("structured") else model


def microseconds(model, x):
    best = float("inf")
    with threadpool_limits(1):
        for _ in range(30):
            start = time.perf_counter()
            model.forward(x)
            best = min(best, time.perf_counter() - start)
    return 1e6 * best


def report(name, model):
    """Prints a row, and returns the accuracy."""
    outputs = np.concatenate([model.forward(part).copy() for part in np.array_split(x_test, 20)])
    accuracy = metrics.accuracy(y_test, outputs.argmax(-1))
    with tempfile.TemporaryDirectory() as folder:
        sp.save(f"{folder}/m.safetensors", model)
        data = Path(f"{folder}/m.safetensors").read_bytes()
    times = "".join(f"{microseconds(model, x_test[:n]):>9.0f}" for n in (256, 1))
    sizes = f"{np.count_nonzero(model.params):>10,}{len(data) / 1e3:>9.1f}{len(zlib.compress(data, 9)) / 1e3:>10.1f}"
    print(f"{name:<36}{sizes}{accuracy:>10.2%}{times}", flush=True)
    return accuracy


layers = [nn.Dense(128), nn.ReLU(), nn.Dense(10)]
if not dense:
    layers = [nn.Conv2D(32, 3), nn.ReLU(), nn.MaxPool2D(2), nn.Flatten(), *layers[:2], nn.Dropout(0.5), layers[2]]
trained = fit(nn.Sequential(layers, input_shape=x.shape[1:]), epochs, 1e-3 if dense else 2e-3)

print(f"{'':<36}{'not zero':>10}{'KB':>9}{'KB zipped':>10}{'accuracy':>10}{'us, 256':>9}{'us, 1':>9}")
before = report("as trained", trained)
report(f"trained on for {more} epochs", fit(copy.deepcopy(trained), more, 5e-4))
once = copy.deepcopy(trained)
compress.prune(once, 0.8, scope="layer")
report("80% magnitude, not trained on", once)
gradual = compress.cubic(0.8, steps=steps // 2)
by_chance = report("80% random, trained on", pruned(gradual, method="random", scope="layer", every=20))
by_layer = report("80% magnitude by layer, trained on", pruned(gradual, scope="layer", every=20))
overall = report("80% magnitude overall, trained on", pruned(gradual, every=20))
report("half the units, random", pruned(0.5, structured=True, method="random"))
report("half the units, L1", pruned(0.5, structured=True))
small = pruned(0.5, structured=True, method="l2")
half = report("half the units, L2", small)

assert overall >= by_chance - 0.01 * args.quick
assert max(by_layer, overall) >= before - (0.03 if args.quick else 0.005)
assert half >= before - (0.05 if args.quick else 0.01)
assert small.multiplications < 0.6 * trained.multiplications
