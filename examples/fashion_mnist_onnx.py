"""Fashion-MNIST networks served by onnxruntime: the same answers without steepest.

Trains the dense 784-128-10 network and a small convolution network, quantises each, and exports all of it with
the scaling of the pixels and the labels' names inside. onnxruntime then answers for the raw test images. On
x86 without VNNI its products of static bytes saturate: weights of 7 bits are for those.
Needs `pip install "steepest[onnx]"` and `apt-get install dataset-fashion-mnist`.

    $ python examples/fashion_mnist_onnx.py
    network      model            kB  accuracy  same class   us per image
    dense        float32          408    86.17%    100.00%           2.6
    dense        8 bits static    104    86.20%    100.00%           1.2
    dense        8 bits dynamic   104    86.28%    100.00%           1.2
    dense        7 bits static    104    86.02%    100.00%           1.4
    dense        7 bits dynamic   104    85.94%    100.00%           1.3
    convolution  float32           22    87.99%    100.00%          12.9
    convolution  8 bits static      8    88.01%     99.98%          19.8
    convolution  8 bits dynamic     7    87.98%    100.00%          58.3
    convolution  7 bits static      8    88.07%     99.94%          19.3
    convolution  7 bits dynamic     7    88.02%    100.00%          57.8
"""

import argparse
import time

import numpy as np
import onnxruntime as ort

import steepest as sp
from steepest import compress, datasets, metrics, nn
from steepest.onnx import export_onnx
from steepest.train import Trainer

parser = argparse.ArgumentParser(description="Fashion-MNIST networks served by onnxruntime.")
parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist", help="folder of the four IDX files")
parser.add_argument("--quick", action="store_true", help="fewer samples, fewer epochs")
args = parser.parse_args()
try:
    train, _, test = datasets.load_idx_folder(args.data)
except FileNotFoundError as error:
    parser.exit(2, f"{error}\nDebian and Ubuntu bring it: apt-get install dataset-fashion-mnist\n")
assert test is not None
n, epochs = (6000, 1) if args.quick else (60000, 3)
images, y = train[0][:n], train[1][:n]
test = tuple(part[: 2000 if args.quick else None] for part in test)
labels = ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]


def served(exported: object, raw: np.ndarray) -> tuple[np.ndarray, float]:
    """What onnxruntime answers for raw images, and its microseconds for one of them, 256 at a time."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(exported.SerializeToString(), options, providers=["CPUExecutionProvider"])
    start = time.perf_counter()
    parts = [session.run(["logits", "label"], {"x": part}) for part in np.array_split(raw, -(-len(raw) // 256))]
    took = (time.perf_counter() - start) / len(raw)
    logits = np.concatenate([logits for logits, _ in parts])
    names = np.concatenate([label for _, label in parts])
    assert (names == np.array(labels)[logits.argmax(1)]).all()
    return logits, 1e6 * took


def in_parts(model: nn.Sequential, x: np.ndarray) -> np.ndarray:
    """The model's outputs, by the batches that onnxruntime gets: a dynamic range is one batch's."""
    return np.concatenate([model.forward(part).copy() for part in np.array_split(x, -(-len(x) // 256))])


def filters(n: int) -> list[nn.Layer]:
    """A convolution and what follows it."""
    return [nn.Conv2D(n, 3), nn.ReLU(), nn.MaxPool2D()]


networks = {
    "dense": nn.Sequential([nn.Dense(128), nn.ReLU(), nn.Dense(10)], 784),
    "convolution": nn.Sequential([*filters(8), *filters(16), nn.Flatten(), nn.Dense(10)], (28, 28, 1)),
}
print("network      model            kB  accuracy  same class   us per image")
for name, model in networks.items():
    x, x_test = (
        (part.reshape(-1, *model.input_shape) / np.float32(255)).astype(np.float32) for part in (images, test[0])
    )
    trainer = Trainer(
        model, sp.losses.softmax_cross_entropy, sp.Adam(model.param_groups(), lr=2e-3), [metrics.accuracy]
    )
    trainer.fit(x, y, epochs=epochs, verbose=False)
    kinds = {"float32": model}
    for bits in (8, 7):
        kinds |= {f"{bits} bits static": compress.quantize(model, x[:1000], bits=bits)}
        kinds |= {f"{bits} bits dynamic": compress.quantize(model, bits=bits)}
    for kind, version in kinds.items():
        exported = export_onnx(version, input_shape=test[0].shape[1:], scaling=(0.0, 255.0), labels=labels)
        logits, us = served(exported, test[0].astype(np.float32))
        here = in_parts(version, x_test)
        accuracy, same = np.mean(logits.argmax(1) == test[1]), np.mean(logits.argmax(1) == here.argmax(1))
        size = len(exported.SerializeToString()) / 1000
        print(f"{name:<12} {kind:<14} {size:>5,.0f} {accuracy:>9.2%} {same:>10.2%} {us:>13.1f}")
        if kind == "float32":
            assert np.abs(logits - here).max() <= 1e-5 * np.abs(here).max()
        elif kind.startswith("7"):
            assert same >= 0.999
