"""Losses: the value and its gradient in one call, one pass over memory.

Every function returns `(loss, gradient)`: a Python float, and an array of the predictions' shape and
dtype (float32 or float64), which is `out` if it is given; `out` may be the predictions themselves.
`reduction="mean"` divides by the number of terms, or with `sample_weight` by the sum of the weights;
`"sum"` does not. Where nothing is left to average, the loss is 0.0 and the gradient zero. A weight of
zero leaves its sample out, whatever stands there. Arrays are C-contiguous and are never converted:
TypeError names a wrong dtype, ValueError what else is wrong, and nothing is changed then.
"""

from __future__ import annotations

from numbers import Real
from typing import Any

from numpy.typing import NDArray

from steepest import _core
from steepest._arguments import check_integer


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


def mae(
    prediction: NDArray[Any],
    target: NDArray[Any],
    *,
    reduction: str = "mean",
    sample_weight: NDArray[Any] | None = None,
    out: NDArray[Any] | None = None,
) -> tuple[float, NDArray[Any]]:
    """Mean absolute error: the mean (or sum) over all elements of w |prediction - target|.

    The derivative is the sign of the difference, 0 where there is none. Arguments as in `mse`.

        >>> import numpy as np
        >>> from steepest import losses
        >>> losses.mae(np.array([1.0, 2.0]), np.array([0.0, 4.0]))
        (1.5, array([ 0.5, -0.5]))
    """
    return _core.mae(prediction, target, _is_mean(reduction), sample_weight, out)


def huber(
    prediction: NDArray[Any],
    target: NDArray[Any],
    *,
    delta: float = 1.0,
    reduction: str = "mean",
    sample_weight: NDArray[Any] | None = None,
    out: NDArray[Any] | None = None,
) -> tuple[float, NDArray[Any]]:
    """Huber's loss: the mean (or sum) of w d^2 / 2 where |d| <= delta, else of w delta (|d| - delta / 2).

    d = prediction - target; the derivative is d clipped to [-delta, delta]. Arguments as in `mse`;
    ValueError unless delta is finite and > 0. It is `torch.nn.functional.huber_loss`.

        >>> import numpy as np
        >>> from steepest import losses
        >>> losses.huber(np.array([1.0, 2.0]), np.array([0.5, 4.0]))
        (0.8125, array([ 0.25, -0.5 ]))
    """
    if not isinstance(delta, Real):
        raise TypeError(f"delta: expected a number, got {type(delta).__name__}")
    if not 0 < delta < float("inf"):
        raise ValueError(f"delta: expected a finite number > 0, got {delta!r}")
    return _core.huber(prediction, target, _is_mean(reduction), sample_weight, out, delta)


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
    `mse`. With logits of shape (n, labels) and targets of 0 and 1 it is the multi-label cross-entropy.
    The formula neither overflows nor cancels: a confident right answer keeps its digits. It is
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
    if not isinstance(label_smoothing, Real):
        raise TypeError(f"label_smoothing: expected a number, got {type(label_smoothing).__name__}")
    if ignore_index is not None and not -(2**63) <= check_integer("ignore_index", ignore_index) < 2**63:
        raise ValueError(f"ignore_index: expected a number in the range of int64, got {ignore_index}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing: expected a number in [0, 1), got {label_smoothing!r}")
    return _core.softmax_cross_entropy(
        logits, labels, label_smoothing, ignore_index, False, _is_mean(reduction), sample_weight, out
    )


def kl_divergence(
    logits: NDArray[Any],
    target: NDArray[Any],
    *,
    reduction: str = "mean",
    sample_weight: NDArray[Any] | None = None,
    out: NDArray[Any] | None = None,
) -> tuple[float, NDArray[Any]]:
    """Kullback-Leibler divergence: the mean (or sum) over rows of sum_j t_j (log(t_j) - log(softmax(x)_j)).

    `target` holds probabilities, in the shape (..., classes) and dtype of `logits`; 0 log(0) is 0. Its
    gradient is that of `softmax_cross_entropy`, whose value it has less the entropy of the target; the
    other arguments are the same. It is `torch.nn.functional.kl_div(log_softmax(x), t, reduction="batchmean")`.

        >>> import numpy as np
        >>> from steepest import losses
        >>> loss, gradient = losses.kl_divergence(np.zeros((1, 2)), np.array([[0.5, 0.5]]))
        >>> round(loss, 12)
        0.0
    """
    if getattr(target, "dtype", None) is not None and target.dtype.kind in "iu":
        raise TypeError(f"target: expected probabilities, got dtype {target.dtype}")
    return _core.softmax_cross_entropy(logits, target, 0.0, None, True, _is_mean(reduction), sample_weight, out)


def distillation(
    logits: NDArray[Any],
    teacher_logits: NDArray[Any],
    labels: NDArray[Any],
    *,
    alpha: float = 0.5,
    temperature: float = 2.0,
    reduction: str = "mean",
    sample_weight: NDArray[Any] | None = None,
    out: NDArray[Any] | None = None,
) -> tuple[float, NDArray[Any]]:
    """Knowledge distillation: the mean (or sum) over rows of alpha T^2 KL(q || p_T) + (1 - alpha) cross-entropy.

    q = softmax(teacher_logits / T), p_T = softmax(logits / T), T = `temperature`; the cross-entropy of the
    integer `labels`, of shape (...), is that of softmax(logits). `logits` and `teacher_logits` have one
    shape (..., classes) and dtype, `sample_weight` has shape (...). The gradient is that with respect to
    `logits`; other than elsewhere here, `out` may not be the logits. A teacher's class at -inf has q = 0; a
    student's has an infinite loss where q > 0.

    ValueError unless 0 <= alpha <= 1 and 1e-30 <= temperature <= 1e30. The formula is that of Hinton,
    Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015), whose factor T^2 keeps the
    gradients' sizes comparable. It also makes the value, not the gradient, lose digits as T grows: of
    float32 logits within 0.1 of the teacher's, it is off by up to 1e-3 of itself at T = 10, 1e-2 at 20.

        >>> import numpy as np
        >>> from steepest import losses
        >>> teacher = np.array([[2.0, 1.0, -1.0]])
        >>> loss, gradient = losses.distillation(teacher.copy(), teacher, np.array([0]), alpha=1.0)
        >>> loss, bool((abs(gradient) < 1e-15).all())
        (0.0, True)
    """
    for name, value in (("alpha", alpha), ("temperature", temperature)):
        if not isinstance(value, Real):
            raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: expected a number in [0, 1], got {alpha!r}")
    if not 1e-30 <= temperature <= 1e30:  # so that neither it nor its inverse is 0 or infinite in float32
        raise ValueError(f"temperature: expected a number in [1e-30, 1e30], got {temperature!r}")
    return _core.distillation(
        logits, teacher_logits, labels, alpha, temperature, _is_mean(reduction), sample_weight, out
    )


COMPILED = (mse, mae, huber, binary_cross_entropy, softmax_cross_entropy)  # known to `_core.Backpropagation` by name
