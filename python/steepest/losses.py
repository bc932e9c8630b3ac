"""Losses: the value and its gradient in one call, one pass over memory.

Every function returns `(loss, gradient)`: a Python float, and an array of the predictions' shape and
dtype (float32 or float64), which is `out` if it is given; `out` may be the predictions themselves.
`reduction="mean"` divides by the number of terms, or with `sample_weight` by the sum of the weights;
`"sum"` does not. Where nothing is left to average, the loss is 0.0 and the gradient zero. A weight of
zero leaves its sample out, whatever stands there. Arrays are C-contiguous and are never converted:
TypeError names a wrong dtype, ValueError what else is wrong, and nothing is changed then.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from steepest import _core


def _is_mean(reduction: str) -> bool:
    if reduction not in ("mean", "sum"):
        raise ValueError(f'reduction: expected "mean" or "sum", got {reduction!r}')
    return reduction == "mean"


def mse(
    prediction: NDArray[Any],
    target: NDArray[Any],
    *,
    reduction: str = "mean",
    sample_weight: NDArray[Any] | None = None,
    out: NDArray[Any] | None = None,
) -> tuple[float, NDArray[Any]]:
    """Mean squared error: the mean (or sum) over all elements of w (prediction - target)^2.

    `target` has the shape and dtype of `prediction`, `sample_weight` those of its leading axes: one
    weight per row, or one per element. Differences are taken in double, so float32 does not overflow.

        >>> import numpy as np
        >>> from steepest import losses
        >>> losses.mse(np.array([1.0, 2.0]), np.array([0.0, 4.0]))
        (2.5, array([ 1., -2.]))
    """
    return _core.mse(prediction, target, _is_mean(reduction), sample_weight, out)


def binary_cross_entropy(
    logits: NDArray[Any],
    target: NDArray[Any],
    *,
    reduction: str = "mean",
    sample_weight: NDArray[Any] | None = None,
    out: NDArray[Any] | None = None,
) -> tuple[float, NDArray[Any]]:
    """Binary cross-entropy from logits: the mean (or sum) of -y log(sigmoid(x)) - (1 - y) log(sigmoid(-x)).

    `target` holds probabilities in [0, 1], in the shape and dtype of `logits`; `sample_weight` as in
    `mse`. The formula neither overflows nor cancels: a confident right answer keeps its digits. It is
    `torch.nn.functional.binary_cross_entropy_with_logits`.

        >>> import numpy as np
        >>> from steepest import losses
        >>> losses.binary_cross_entropy(np.array([0.0]), np.array([1.0]))
        (0.6931471805599453, array([-0.5]))
    """
    return _core.binary_cross_entropy(logits, target, _is_mean(reduction), sample_weight, out)


def softmax_cross_entropy(
    logits: NDArray[Any],
    labels: NDArray[Any],
    *,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    reduction: str = "mean",
    sample_weight: NDArray[Any] | None = None,
    out: NDArray[Any] | None = None,
) -> tuple[float, NDArray[Any]]:
    """Softmax cross-entropy: the mean (or sum) over rows of -sum_j t_j log(softmax(x)_j).

    `logits` has shape (..., classes). `labels` are class numbers, integers of shape (...), or
    probabilities of the logits' shape and dtype. `label_smoothing` in [0, 1) replaces the target t by
    (1 - label_smoothing) t + label_smoothing / classes. Rows with the label `ignore_index` count
    nothing. `sample_weight` has shape (...). A class with logit -inf is masked: its probability and
    its gradient are exactly 0 (unless it is the target), and smoothing leaves it out. Labels out of
    range raise ValueError before anything is read or written. It is
    `torch.nn.functional.cross_entropy`, whose mean is NaN where nothing is left.

        >>> import numpy as np
        >>> from steepest import losses
        >>> loss, gradient = losses.softmax_cross_entropy(np.array([[20.0, 0.0]]), np.array([0]))
        >>> round(loss * 1e9, 3)
        2.061
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing: expected a number in [0, 1), got {label_smoothing!r}")
    return _core.softmax_cross_entropy(
        logits, labels, label_smoothing, ignore_index, _is_mean(reduction), sample_weight, out
    )
