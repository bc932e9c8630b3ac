"""Training from a memory map larger than the memory that the process may have.

The rows of a memory map are read where a batch needs them, and the system may drop them again. A
limit on the process's own memory (RLIMIT_DATA, Linux: what it allocates; mapped files don't count)
proves that no more is needed: under it the file cannot be loaded, but it can be trained from,
shuffled and with rows held out for validation.

    $ python examples/memory_map.py
    file 506 MB, limit 253 MB
    loading it: Unable to allocate 506. MiB for an array with shape (132718592,) and data type float32
    epoch 1/2  loss 6.285  lr 0.01  val_loss 3.64e-11
    epoch 2/2  loss 2.729e-11  lr 0.01  val_loss 6.525e-11
    training from the map: at most 168 MB
"""

import argparse
import re
import resource
import tempfile
from pathlib import Path

import numpy as np

import steepest as sp
from steepest import nn
from steepest.callbacks import Callback
from steepest.train import Trainer

parser = argparse.ArgumentParser(description="Training from a memory map larger than a memory limit.")
parser.add_argument("--quick", action="store_true", help="a smaller file")
quick = parser.parse_args().quick
MB, features = 1 << 20, 256


def allocated() -> int:
    """What RLIMIT_DATA counts, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(r"VmData:\s+(\d+)", status)[0])


class Peak(Callback):
    """The most that was allocated after any batch."""

    bytes = 0

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        """Looks every 50 batches."""
        if batch % 50 == 0:
            self.bytes = max(self.bytes, allocated())


np.ones((512, 512)) @ np.ones((512, 512))  # BLAS takes its memory at the first product
limit = allocated() + (32 if quick else 128) * MB
rows = (limit * 5 // 4 if quick else 2 * limit) // (4 * features)
rng = np.random.default_rng(0)
truth = rng.normal(size=features).astype(np.float32)

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "x.npy"
    x = np.lib.format.open_memmap(path, "w+", np.float32, (rows, features))
    for start in range(0, rows, 10_000):
        part = x[start : start + 10_000]
        part[...] = rng.standard_normal(part.shape, np.float32)
    y = x @ truth
    x.flush()

    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    print(f"file {path.stat().st_size / MB:.0f} MB, limit {limit / MB:.0f} MB")
    try:
        np.load(path)
    except MemoryError as error:
        print(f"loading it: {error}")
    else:
        raise AssertionError("the file could be loaded: the limit has no effect here")

    x = np.load(path, mmap_mode="r")
    model, peak = nn.Sequential([nn.Dense(1)], input_shape=features), Peak()
    trainer = Trainer(model, sp.losses.mse, sp.Adam(model.params, lr=0.01))
    losses = trainer.fit(x, y, batch_size=128, epochs=2, validation_split=0.1, callbacks=[peak]).history["val_loss"]
    print(f"training from the map: at most {peak.bytes / MB:.0f} MB")
    assert peak.bytes < limit < path.stat().st_size
    assert losses[-1] < 1e-3 * (truth @ truth)
    del x  # closes the file
