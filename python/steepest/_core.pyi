"""The compiled module: what `steepest.optim` and `steepest.losses` call. Not public."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__version__: str

def set_num_threads(n: int) -> None:
    """Kernels run on up to n threads, the caller's included (1 to 256). Results do not depend on it."""

def get_num_threads() -> int: ...
def set_threading(engine: str) -> None:
    """Chooses the engine: "pool" (default; safe beside BLAS and PyTorch) or "openmp" (RuntimeError without it)."""

def get_threading() -> str: ...
def build_info() -> dict[str, Any]: ...

_bfloat16_bits: np.dtype[np.uint16]
"""Arrays of this dtype, a uint16 with metadata, are taken as bfloat16 by optimizers and `global_norm`."""

class Optimizer:
    grouped: bool
    def add_group(self, params: object, options: dict[str, Any]) -> None: ...
    def set_options(self, group: int, options: dict[str, Any]) -> None: ...
    def set_precision(self, state_dtype: str | None, seed: int | None, has_whole_masters: bool) -> None: ...
    def set_clipping(self, max_norm: float, nonfinite: str) -> None: ...
    def step(self, grads: object, grad_scale: float) -> None: ...
    def set_masks(self, masks: list[object]) -> None: ...
    def masks(self) -> list[NDArray[Any] | None]: ...
    def snapshot(self, copy: bool = True) -> list[dict[str, Any]]: ...
    def restore(
        self, tensors: list[dict[str, Any]], steps: int, options: list[dict[str, Any]] = ..., copy: bool = True
    ) -> None: ...
    @property
    def last_norm(self) -> float | None: ...
    @property
    def steps(self) -> int: ...

class SGD(Optimizer): ...
class Momentum(Optimizer): ...
class RMSprop(Optimizer): ...
class Adagrad(Optimizer): ...
class Adam(Optimizer): ...
class NAdam(Optimizer): ...
class Lion(Optimizer): ...

class Tensors:
    """Steps an optimizer over PyTorch's tensors: what `steepest.torch` calls."""

    def __init__(
        self,
        optimizer: Optimizer,
        tensor_type: object,
        count_writes: object,
        make_handle: object,
        functions: Sequence[int],
    ) -> None: ...
    def set_options(self, group: int, options: dict[str, Any]) -> list[str]: ...
    def watch(self, groups: list[Any], state: dict[Any, Any], params: list[Any]) -> None: ...
    def watch_options(self, groups: list[Any]) -> None: ...
    def step(self, groups: list[Any], state: dict[Any, Any], gradients: list[Any] | None) -> str: ...

def mse(
    prediction: NDArray[Any],
    target: NDArray[Any],
    mean: bool,
    sample_weight: NDArray[Any] | None,
    out: NDArray[Any] | None,
    delta: float = 0.0,
) -> tuple[float, NDArray[Any]]: ...
def mae(
    prediction: NDArray[Any],
    target: NDArray[Any],
    mean: bool,
    sample_weight: NDArray[Any] | None,
    out: NDArray[Any] | None,
    delta: float = 0.0,
) -> tuple[float, NDArray[Any]]: ...
def huber(
    prediction: NDArray[Any],
    target: NDArray[Any],
    mean: bool,
    sample_weight: NDArray[Any] | None,
    out: NDArray[Any] | None,
    delta: float = 0.0,
) -> tuple[float, NDArray[Any]]: ...
def binary_cross_entropy(
    logits: NDArray[Any],
    target: NDArray[Any],
    mean: bool,
    sample_weight: NDArray[Any] | None,
    out: NDArray[Any] | None,
    delta: float = 0.0,
) -> tuple[float, NDArray[Any]]: ...
def softmax_cross_entropy(
    logits: NDArray[Any],
    labels: NDArray[Any],
    label_smoothing: float,
    ignore_index: int | None,
    divergence: bool,
    mean: bool,
    sample_weight: NDArray[Any] | None,
    out: NDArray[Any] | None,
) -> tuple[float, NDArray[Any]]: ...
def distillation(
    logits: NDArray[Any],
    teacher_logits: NDArray[Any],
    labels: NDArray[Any],
    alpha: float,
    temperature: float,
    mean: bool,
    sample_weight: NDArray[Any] | None,
    out: NDArray[Any] | None,
) -> tuple[float, NDArray[Any]]: ...
def global_norm(arrays: Iterable[NDArray[Any]]) -> float:
    """The 2-norm of all elements of float32 and float64 arrays together, as a float.

    The same bits with any ISA and any number of threads; neither overflows nor underflows unless the norm itself does.
    """

def activate(activation: str, x: NDArray[Any], bias: NDArray[Any] | None, alpha: float, out: NDArray[Any]) -> None: ...
def mask(activation: str, grad: NDArray[Any], y: NDArray[Any], alpha: float) -> None: ...
def dropout(x: NDArray[Any], uniform: NDArray[Any], rate: float, out: NDArray[Any]) -> None: ...
def take_rows(array: NDArray[Any], rows: NDArray[np.int64], out: NDArray[Any]) -> None:
    """out = array[rows], for rows next to each other in memory."""

def is_mostly_zero(x: NDArray[Any]) -> bool: ...
def matmul(a: NDArray[Any], b: NDArray[Any], out: NDArray[Any]) -> None: ...
def dense(
    x: NDArray[Any],
    weight: NDArray[Any],
    bias: NDArray[Any] | None,
    activation: str,
    alpha: float,
    out: NDArray[Any],
) -> None:
    """out = f(x weight + bias)."""

def dense_gradients(x: NDArray[Any], grad: NDArray[Any], dweight: NDArray[Any], dbias: NDArray[Any] | None) -> None:
    """dweight = x grad, for x already transposed, and dbias = the sum of grad's rows."""

class Chain:
    """Dense layers in a row, each (weight, bias, activation, alpha, dweight, dbias), of which from `first` on train."""

    def __init__(self, layers: list[tuple[Any, ...]], first: int) -> None: ...
    def forward(self, x: NDArray[Any]) -> NDArray[Any]:
        """The outputs, in an array that the next call reuses."""

    def forward_sparse(
        self, starts: NDArray[np.int64], columns: NDArray[np.int32], values: NDArray[Any]
    ) -> NDArray[Any]:
        """The same for rows in CSR, their columns in ascending order."""

    def backward(self, grad: NDArray[Any]) -> None:
        """Fills the gradients, given that of the last outputs, which an activation at the end writes over."""

class Backpropagation:
    """The loss of some rows of `x` and their `targets`, and the gradients of the chain's parameters."""

    def __init__(
        self, chain: Chain, x: NDArray[Any], targets: NDArray[Any], loss: str, dense_rows: int, sparse_rows: int
    ) -> None: ...
    def __call__(self, rows: NDArray[np.int64] | slice) -> tuple[float | None, NDArray[Any], NDArray[Any]]:
        """(loss, outputs, targets), or (None, x, targets) of more rows than those, `sparse_rows` if mostly zero.

        With row numbers, the arrays are reused.
        """
    def train(
        self,
        order: NDArray[np.int64] | None,
        begin: int,
        end: int,
        size: int,
        optimizer: Optimizer,
        gradients: object,
        grad_scale: float,
        total: float,
        observe: Callable[[NDArray[Any], NDArray[Any]], object] | None = None,
        scale: float = 1.0,
        penalty: float = 0.0,
        penalised: NDArray[Any] | None = None,
    ) -> tuple[int, float]:
        """Trains on batches of `size` of the rows begin..end, for about a millisecond.

        Returns where the next batch begins, and `total` plus each batch's loss times its rows: scale times the loss
        function's, plus penalty times the square of the norm of `penalised`, divided by the rows. Ends before a batch
        for which calling gives None or a loss that is not finite.
        """

_Pair = tuple[int, int]

def im2col(
    images: NDArray[Any], window: _Pair, stride: _Pair, pad: _Pair, out: _Pair, patches: NDArray[Any]
) -> None: ...
def col2im(
    images: NDArray[Any], window: _Pair, stride: _Pair, pad: _Pair, out: _Pair, patches: NDArray[Any]
) -> None: ...
def avg_pool(
    images: NDArray[Any], window: _Pair, stride: _Pair, pad: _Pair, out: _Pair, pooled: NDArray[Any]
) -> None: ...
def avg_pool_backward(
    images: NDArray[Any], window: _Pair, stride: _Pair, pad: _Pair, out: _Pair, pooled: NDArray[Any]
) -> None: ...
def max_pool(
    images: NDArray[Any],
    window: _Pair,
    stride: _Pair,
    pad: _Pair,
    out: _Pair,
    pooled: NDArray[Any],
    sources: NDArray[Any],
    forward: bool,
) -> None: ...
def value_range(x: NDArray[Any]) -> tuple[float, float]: ...
def quantize(x: NDArray[Any], scale: float, zero_point: int, out: NDArray[Any]) -> None: ...
def quantized_product(
    x: NDArray[Any],
    window: _Pair,
    stride: _Pair,
    pad: _Pair,
    positions: _Pair,
    zero_point: int,
    weights: NDArray[Any],
    start: NDArray[Any],
    scale: NDArray[Any],
    bias: NDArray[Any],
    lowest: float,
    out: NDArray[Any],
    out_scale: float = 1.0,
    out_zero_point: int = 0,
) -> None: ...
def quantized_max_pool(
    x: NDArray[Any], window: _Pair, stride: _Pair, pad: _Pair, positions: _Pair, pooled: NDArray[Any]
) -> None: ...
def _exp(x: NDArray[Any]) -> NDArray[Any]: ...
def _log(x: NDArray[Any]) -> NDArray[Any]: ...
def _log1p(x: NDArray[Any]) -> NDArray[Any]: ...
def _zeros(n: int, dtype: np.dtype[Any], place: int) -> NDArray[Any]:
    """n zeros in untouched memory, which begins at this place of a cache line."""

def _set_isa(name: str) -> None: ...
def _share_blocks_of(units: int) -> None: ...
def _blocks_run() -> list[int]: ...
def _stream(updated: list[NDArray[Any]], written: list[NDArray[Any]], read: list[NDArray[Any]]) -> None:
    """For benchmarks: adds the arrays read to those updated, or into those written; all of one dtype."""
