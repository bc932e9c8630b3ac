"""steepest: the fastest optimizer step on a CPU, straight from NumPy.

>>> import numpy as np, steepest as sp
>>> w = np.array([3.0, -2.0])
>>> opt = sp.Adam(w, lr=0.1)
>>> for _ in range(300):
...     opt.step(2 * w)  # the gradient of w @ w
>>> bool(np.abs(w).max() < 1e-3)
True
"""

from steepest import _threads, losses, schedules
from steepest._core import (
    __version__,
    get_num_threads,
    get_threading,
    global_norm,
    set_num_threads,
    set_threading,
)
from steepest.checkpoint import Checkpoint, load, load_into, save
from steepest.minimize import MinimizeResult, minimize
from steepest.optim import SGD, Adagrad, Adam, AdamW, Lion, Momentum, NAdam, Optimizer, RMSprop

_threads.set_defaults()

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Checkpoint",
    "Lion",
    "MinimizeResult",
    "Momentum",
    "NAdam",
    "Optimizer",
    "RMSprop",
    "__version__",
    "get_num_threads",
    "get_threading",
    "global_norm",
    "load",
    "load_into",
    "losses",
    "minimize",
    "save",
    "schedules",
    "set_num_threads",
    "set_threading",
]
