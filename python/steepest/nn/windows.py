"""Windows that slide over images: their sizes, strides and padding."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Literal

from steepest.nn.layer import Layer, Shape

__all__ = ["Padding", "Pair", "Window", "check_padding", "extent", "slide"]

Pair = tuple[int, int]
Padding = Literal["valid", "same"]
Window = tuple[Pair, Pair, Pair, Pair]  # size, stride, padding above and left, positions: what kernels take


def extent(name: str, value: int | Sequence[int]) -> int | Pair:
    """A positive integer, or two of them: of the height and of the width."""
    several = isinstance(value, Sequence) and not isinstance(value, str)
    try:
        numbers = tuple(operator.index(n) for n in (value if isinstance(value, Sequence) else (value,)))
    except TypeError:
        raise TypeError(f"{name}: expected an integer, or two of them, got {value!r}") from None
    if len(numbers) != (2 if several else 1) or min(numbers) < 1:
        raise ValueError(f"{name}: expected a positive integer, or two of them, got {value!r}")
    return (numbers[0], numbers[1]) if several else numbers[0]


def check_padding(padding: Padding) -> Padding:
    """Its argument, if it is "valid" or "same"."""
    if padding not in ("valid", "same"):
        raise ValueError(f"padding: expected 'valid' or 'same', got {padding!r}")
    return padding


def _both(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else value


def _positions(size: int, window: int, stride: int, padding: Padding) -> tuple[int, int]:
    """How many places the window has along an axis, and the padding before it."""
    if padding == "valid":
        return (size - window) // stride + 1, 0
    out = -(-size // stride)
    return out, max((out - 1) * stride + window - size, 0) // 2


def slide(
    layer: Layer, input_shape: Shape, size: int | Pair, stride: int | Pair, padding: Padding
) -> tuple[Window, Shape]:
    """The window over images of that shape, and the shape it gives, less the channels.

    "valid" windows lie inside the image. "same" is Keras': ceil(size / stride) positions, and as
    much padding as they need, the odd pixel of it below and to the right.
    """
    kind = type(layer).__name__
    if len(input_shape) != 3:
        shape = (*input_shape, 1) if len(input_shape) == 2 else "(height, width, channels)"
        raise ValueError(
            f"{kind} takes images (height, width, channels), got {input_shape}; put Reshape({shape}) before"
        )
    window, step = _both(size), _both(stride)
    (rows, top), (columns, left) = (
        _positions(*axis, padding) for axis in zip(input_shape[:2], window, step, strict=True)
    )
    if min(rows, columns) < 1:
        raise ValueError(
            f"{kind}: a window of {window} does not fit into {input_shape[:2]}; padding='same' makes it fit"
        )
    return (window, step, (top, left), (rows, columns)), (rows, columns)
