"""Two networks on Fashion-MNIST, then with int8 weights: a quarter of the size, the same accuracy, quicker.

The dense and the convolution network of the other two programs, trained as there. "static" takes the
ranges of the layers' inputs from 1,000 training images, "dynamic" from every batch anew; "binary" keeps
the signs of the weights alone, between a first and a last layer of int8 where there are three layers.
Times vary with what else the machine does: these are of a busy one.

    $ python examples/fashion_mnist_quantized.py
                                  bytes   accuracy   256 images
    784-128-10  float32         408,792     89.05%      0.32 ms
    784-128-10  int8, static    104,136     89.02%      0.31 ms
    784-128-10  int8, dynamic   104,064     88.99%      0.34 ms
    784-128-10  binary           16,352     78.74%      0.30 ms
    convolution float32       2,778,752     91.32%     52.17 ms
    convolution int8, static    697,256     91.30%     17.20 ms
    convolution int8, dynamic   697,144     91.29%     22.03 ms
    convolution binary           91,592     88.22%     15.13 ms
"""

import argparse
import os
import tempfile
import time

import numpy as np

import steepest as sp
from steepest import compress, datasets, metrics, nn
from steepest.train import Trainer

parser = argparse.ArgumentParser(description="int8 networks on Fashion-MNIST.")
parser.add_argument("--quick", action="store_true", help="fewer images and epochs")
parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist", help="folder of the four IDX files")
args = parser.parse_args()
try:
    train, _, test = datasets.load_idx_folder(args.data)
except FileNotFoundError as error:
    parser.exit(2, f"{error}\nDebian and Ubuntu bring it: apt-get install dataset-fashion-mnist\n")
assert test is not None

rows = 2_000 if args.quick else 60_000
(x, y), (x_test, y_test) = ((images[:rows] / np.float32(255), labels[:rows]) for images, labels in (train, test))


def trained(model: nn.Sequential, lr: float, batch_size: int, epochs: int) -> nn.Sequential:
    schedule = sp.schedules.cosine(lr, steps=epochs * rows // batch_size, warmup=epochs * rows // batch_size // 20)
    optimizer = sp.Adam(model.param_groups(), lr=schedule)
    trainer = Trainer(model, sp.losses.softmax_cross_entropy, optimizer, blas_threads=1)
    trainer.fit(x, y, batch_size=batch_size, epochs=epochs, verbose=False)
    return model


def outputs(model: nn.Sequential) -> np.ndarray:
    return np.concatenate([model.forward(x_test[i : i + 256]).copy() for i in range(0, len(x_test), 256)])


def milliseconds(model: nn.Sequential) -> float:
    """Of a batch of 256, the median of 20."""
    times = []
    for _ in range(20):
        start = time.perf_counter()
        model.forward(x_test[:256])
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times))


def size(model: nn.Sequential) -> int:
    with tempfile.TemporaryDirectory() as folder:
        compress.save(f"{folder}/model.safetensors", model)
        return os.path.getsize(f"{folder}/model.safetensors")


images, end = (28, 28, 1), (nn.Flatten(), nn.Dense(128), nn.ReLU(), nn.Dropout(0.5), nn.Dense(10))
convolution = nn.Sequential([nn.Conv2D(32, 3), nn.ReLU(), nn.MaxPool2D(2), *end], input_shape=images)
dense = nn.Sequential([nn.Flatten(), nn.Dense(128), nn.ReLU(), nn.Dense(10)], input_shape=images)
models = {
    "784-128-10": trained(dense, lr=1e-3, batch_size=32, epochs=2 if args.quick else 10),
    "convolution": trained(convolution, lr=4e-3, batch_size=64, epochs=2 if args.quick else 5),
}
print(f"{'':<25}{'bytes':>10}{'accuracy':>11}{'256 images':>13}")
for name, model in models.items():
    calibration = x[:1000]
    forms = {
        "float32": model,
        "int8, static": compress.quantize(model, calibration),
        "int8, dynamic": compress.quantize(model),
        "binary": compress.quantize(model, calibration, bits=(1, 8) if name == "784-128-10" else (8, 1, 8)),
    }
    accuracy = {form: metrics.accuracy(y_test, outputs(each).argmax(-1)) for form, each in forms.items()}
    for form, each in forms.items():
        print(f"{name:<12}{form:<14}{size(each):>9,}{accuracy[form]:>11.2%}{milliseconds(each):>10.2f} ms")
    for form in ("int8, static", "int8, dynamic"):
        assert size(forms[form]) <= 0.27 * size(model)
        assert accuracy[form] >= accuracy["float32"] - (0.015 if args.quick else 0.005)
