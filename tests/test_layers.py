"""What the layers compute besides matrix products: right for any shapes, and wrong arguments change nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from steepest import _core, reference
from steepest._cases import ulps
from steepest._cases.data import special_values

pytestmark = pytest.mark.kernels

Array = NDArray[Any]
DTYPES = np.dtype(np.float32), np.dtype(np.float64)
ACTIVATIONS = "identity", "relu", "leaky_relu", "tanh", "sigmoid"
both_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def assert_same(actual: Array, expected: Array) -> None:
    assert ulps(actual, expected) == (0, 0)


def draw(rng: np.random.Generator, shape: Any, dtype: Any) -> Array:
    """Ordinary numbers with ties, some of them special."""
    x = rng.integers(-9, 10, shape) / 8
    special = rng.choice(special_values(dtype), shape)
    return np.asarray(np.where(rng.random(shape) < 0.1, special, x), dtype)


# ---------------------------------------------------------------------------------------------
# The kernels, whatever the shapes


@st.composite
def axes(draw: st.DrawFn) -> tuple[int, int, int, int, int]:
    """Along an axis: size, window, stride, padding before, positions. Every position holds a pixel."""
    size, window, stride = draw(st.integers(1, 9)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    before = draw(st.integers(0, window - 1))
    return size, window, stride, before, draw(st.integers(1, (size - 1 + before) // stride + 1))


@both_dtypes
@given(rows=axes(), columns=axes(), batch=st.integers(0, 3), channels=st.integers(0, 19), data=st.data())
def test_any_window_over_any_images(
    dtype: Any, rows: Any, columns: Any, batch: int, channels: int, data: st.DataObject
) -> None:
    sizes, *pairs = zip(rows, columns, strict=True)
    geometry: Any = pairs
    core: Any = _core
    window, _, _, out = geometry
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    _core._set_isa(data.draw(st.sampled_from(_core.build_info()["isas"])))
    _core.set_num_threads(data.draw(st.sampled_from([1, 3])))
    _core._share_blocks_of(1)
    x = draw(rng, (batch, *sizes, channels), dtype)
    patches = draw(rng, (batch * out[0] * out[1], window[0] * window[1] * channels), dtype)
    pooled = draw(rng, (batch, *out, channels), dtype)

    with np.errstate(all="ignore"):
        back = np.empty_like(x)
        for name, images in (("col2im", patches), ("avg_pool_backward", pooled)):
            getattr(_core, name)(back, *geometry, images)
            assert_same(back, getattr(reference, name)(images, x.shape, *geometry))
        for name, images in (("im2col", patches), ("avg_pool", pooled)):
            getattr(_core, name)(x, *geometry, images)
            assert_same(images, getattr(reference, name)(x, *geometry))
        sources = np.empty(pooled.shape, np.int32)
        core.max_pool(x, *geometry, pooled, sources, True)
        largest, source = reference.max_pool(x, *geometry)
        assert_same(pooled, largest)
        np.testing.assert_array_equal(sources, source)
        core.max_pool(back, *geometry, pooled, sources, False)
        assert_same(back, reference.max_pool_backward(pooled, source, x.shape))


def test_the_formulas_are_those_of_sliding_windows() -> None:
    x = np.random.default_rng(0).normal(size=(2, 7, 8, 3))
    window, stride, out = (3, 2), (2, 3), (3, 3)
    views = sliding_window_view(x, window, (1, 2))[:, :: stride[0], :: stride[1]]
    geometry = window, stride, (0, 0), out
    np.testing.assert_array_equal(reference.max_pool(x, *geometry)[0], views.max((-1, -2)))
    np.testing.assert_allclose(reference.avg_pool(x, *geometry), views.mean((-1, -2)), rtol=1e-14)
    patches = views.transpose(0, 1, 2, 4, 5, 3).reshape(2 * 3 * 3, -1)
    np.testing.assert_array_equal(reference.im2col(x, *geometry), patches)


def test_backward_is_the_transpose_of_forward() -> None:
    rng = np.random.default_rng(1)
    shape, geometry = (2, 6, 5, 3), ((3, 2), (2, 1), (1, 0), (3, 5))
    x, patches = rng.normal(size=shape), rng.normal(size=(2 * 15, 18))
    pooled = rng.normal(size=(2, 3, 5, 3))
    assert (reference.im2col(x, *geometry) * patches).sum() == pytest.approx(
        (x * reference.col2im(patches, shape, *geometry)).sum(), rel=1e-12
    )
    assert (reference.avg_pool(x, *geometry) * pooled).sum() == pytest.approx(
        (x * reference.avg_pool_backward(pooled, shape, *geometry)).sum(), rel=1e-12
    )


@both_dtypes
def test_large_arrays_are_shared_among_threads(dtype: Any) -> None:
    """Without being told to share small ones."""
    rng = np.random.default_rng(2)
    x = draw(rng, (700_001, 3), dtype)
    bias, y = draw(rng, 3, dtype), np.empty_like(x)
    uniform = rng.random(x.shape).astype(dtype)
    images, patches = draw(rng, (700, 20, 20, 2), dtype), np.empty((700 * 324, 18), dtype)
    geometry = (3, 3), (1, 1), (0, 0), (18, 18)
    with np.errstate(all="ignore"):
        rectified = reference.activate("relu", x, bias)
        dropped, of_images = reference.dropout(x, uniform, 0.25), reference.im2col(images, *geometry)
    for threads in (1, 2, 3):
        _core.set_num_threads(threads)
        _core.activate("relu", x, bias, 0.0, y)
        assert_same(y, rectified)
        _core.dropout(x, uniform, 0.25, y)
        assert_same(y, dropped)
        _core.im2col(images, *geometry, patches)
        assert_same(patches, of_images)


def test_a_leaky_relu_keeps_what_a_relu_drops() -> None:
    x = np.array([-np.inf, -2, -0.0, 0, 3, np.inf, np.nan], np.float32)
    for activation, expected in (
        ("relu", [0, 0, 0, 0, 3, np.inf, np.nan]),
        ("leaky_relu", [-np.inf, -1, -0.0, 0, 3, np.inf, np.nan]),
    ):
        y = np.empty_like(x)
        _core.activate(activation, x, None, 0.5, y)
        np.testing.assert_array_equal(y, np.array(expected, np.float32))
    gradient = np.full(7, np.inf, np.float32)
    _core.mask("relu", gradient, y, 0.0)
    np.testing.assert_array_equal(gradient, np.array([0, 0, 0, 0, np.inf, np.inf, 0], np.float32))


# ---------------------------------------------------------------------------------------------
# What is refused. A call: the function, its arrays in order, and which of them it writes

GEOMETRY: dict[str, Any] = {"window": (2, 2), "stride": (2, 2), "pad": (0, 0), "out": (2, 3)}
IMAGES, PATCHES, POOLED = (2, 4, 6, 3), (12, 12), (2, 2, 3, 3)

CALLS: dict[str, tuple[Callable[..., Any], dict[str, tuple[int, ...]], set[str]]] = {
    "activate": (
        lambda x, bias, out: _core.activate("relu", x, bias, 0.0, out),
        {"x": (4, 6), "bias": (6,), "out": (4, 6)},
        {"out"},
    ),
    "mask": (lambda grad, y: _core.mask("tanh", grad, y, 0.0), {"grad": (4, 6), "y": (4, 6)}, {"grad"}),
    "dropout": (
        lambda x, uniform, out: _core.dropout(x, uniform, 0.5, out),
        {"x": (4, 6), "uniform": (4, 6), "out": (4, 6)},
        {"out"},
    ),
    "im2col": (partial(_core.im2col, **GEOMETRY), {"images": IMAGES, "patches": PATCHES}, {"patches"}),
    "col2im": (partial(_core.col2im, **GEOMETRY), {"images": IMAGES, "patches": PATCHES}, {"images"}),
    "avg_pool": (partial(_core.avg_pool, **GEOMETRY), {"images": IMAGES, "pooled": POOLED}, {"pooled"}),
    "avg_pool_backward": (
        partial(_core.avg_pool_backward, **GEOMETRY),
        {"images": IMAGES, "pooled": POOLED},
        {"images"},
    ),
    "max_pool": (
        lambda images, pooled, sources=None: max_pool(images, pooled, sources, forward=True),
        {"images": IMAGES, "pooled": POOLED},
        {"pooled"},
    ),
    "max_pool_backward": (
        lambda images, pooled, sources=None: max_pool(images, pooled, sources, forward=False),
        {"images": IMAGES, "pooled": POOLED},
        {"images"},
    ),
}
CALLS |= {
    "matmul": (_core.matmul, {"a": (4, 6), "b": (6, 5), "out": (4, 5)}, {"out"}),
    "dense": (
        lambda x, weight, bias, out: _core.dense(x, weight, bias, "tanh", 0.0, out),
        {"x": (4, 6), "weight": (6, 5), "bias": (5,), "out": (4, 5)},
        {"out"},
    ),
    "dense_gradients": (
        _core.dense_gradients,
        {"x": (6, 4), "grad": (4, 5), "dweight": (6, 5), "dbias": (5,)},
        {"dweight", "dbias"},
    ),
}
EITHER_ORDER = {("matmul", "a"), ("matmul", "b"), ("dense", "x"), ("dense", "weight"), ("dense_gradients", "x")}
ROLES = [(call, name) for call, (_, arrays, _) in CALLS.items() for name in arrays]


def max_pool(images: Any, pooled: Any, sources: Any = None, *, forward: bool, **changed: Any) -> None:
    sources = np.zeros(POOLED, np.int32) if sources is None else sources
    geometry = GEOMETRY | changed
    _core.max_pool(images, **geometry, pooled=pooled, sources=sources, forward=forward)


def misaligned(x: Array) -> Array:
    return np.frombuffer(bytearray(x.nbytes + 1), np.uint8)[1:].view(x.dtype).reshape(x.shape)


def read_only(x: Array) -> Array:
    x.flags.writeable = False
    return x


KINDS: dict[str, tuple[Callable[[Array], Any], type[Exception], str]] = {
    "a list": (lambda x: x.tolist(), TypeError, "expected a numpy.ndarray"),
    "integers": (lambda x: x.astype(np.int32), TypeError, "expected dtype float32 or float64, got int32"),
    "half precision": (lambda x: x.astype(np.float16), TypeError, "got float16"),
    "the other dtype": (lambda x: x.astype(np.float64), TypeError, "expected dtype"),
    "the other byte order": (lambda x: x.astype(x.dtype.newbyteorder()), TypeError, "expected native byte order"),
    "masked": (lambda x: np.ma.array(x, mask=True), TypeError, "masked array"),
    "strided": (lambda x: np.repeat(x, 2, -1)[..., ::2], ValueError, "expected a contiguous array"),
    "misaligned": (misaligned, ValueError, "expected an aligned array"),
    "another shape": (lambda x: np.ones((*x.shape[:-1], x.shape[-1] + 1), x.dtype), ValueError, "expected shape"),
    "an axis less": (lambda x: np.array(x[0]), ValueError, "expected shape"),
    "an axis more": (lambda x: x[None].copy(), ValueError, "expected shape"),
}


def arrays_of(call: str) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    return {name: rng.random(shape, np.float32) for name, shape in CALLS[call][1].items()}


def refused(call: str, arrays: dict[str, Any], error: type[Exception], message: str) -> None:
    """The call raises, and every array is as it was."""
    before = {name: np.copy(x) for name, x in arrays.items()}
    with pytest.raises(error, match=message):
        CALLS[call][0](**arrays)
    for name, x in arrays.items():
        np.testing.assert_array_equal(np.asarray(x), before[name])


@pytest.mark.parametrize("call", CALLS)
def test_the_calls_are_sound(call: str) -> None:
    """So whatever is refused below is refused for what is changed."""
    CALLS[call][0](**arrays_of(call))


@pytest.mark.parametrize(("call", "name"), ROLES)
@pytest.mark.parametrize("kind", KINDS)
def test_wrong_arrays_are_refused(call: str, name: str, kind: str) -> None:
    convert, error, message = KINDS[kind]
    arrays = arrays_of(call)
    arrays[name] = convert(arrays[name])
    blamed = name
    if name == next(iter(arrays)) and kind in ("the other dtype", "another shape", "an axis less", "an axis more"):
        blamed = r"\w+"  # the first array sets what the others are compared with
    if kind == "another shape" and (call, next(iter(arrays))) in EITHER_ORDER:
        blamed = r"\w+"  # of three matrices that do not fit, any may be the wrong one
    refused(call, arrays, error, f"^{blamed}: .*{message}")


@pytest.mark.parametrize(("call", "name"), ROLES)
def test_fortran_order_and_read_only_outputs_are_refused(call: str, name: str) -> None:
    arrays = arrays_of(call)
    if arrays[name].ndim > 1 and (call, name) not in EITHER_ORDER:
        refused(call, arrays | {name: np.asfortranarray(arrays[name])}, ValueError, f"{name}: expected a C-contiguous")
    frozen = arrays | {name: read_only(arrays[name])}
    if name in CALLS[call][2]:
        refused(call, frozen, ValueError, f"{name}: expected a writeable array")
    else:
        CALLS[call][0](**frozen)


@pytest.mark.parametrize("call", CALLS)
def test_overlapping_memory_is_refused(call: str) -> None:
    shapes, written = CALLS[call][1:]
    for first, second in itertools.permutations(shapes, 2):
        if not {first, second} & written:
            continue
        arrays = arrays_of(call)
        sizes = [arrays[name].size for name in (first, second)]
        memory = np.zeros(sum(sizes), np.float32)
        arrays[first] = memory[: sizes[0]].reshape(shapes[first])
        arrays[second] = memory[sizes[0] - 1 :][: sizes[1]].reshape(shapes[second])
        refused(call, arrays, ValueError, "overlaps")
        arrays[second] = memory[sizes[0] :].reshape(shapes[second])
        CALLS[call][0](**arrays)


@pytest.mark.parametrize("name", ["", "RELU", "softmax", "relu\0"])
def test_unknown_activations_are_refused(name: str) -> None:
    x = np.ones(3, np.float32)
    with pytest.raises(ValueError, match="activation: expected identity, relu"):
        _core.activate(name, x, None, 0.0, x)
    with pytest.raises(ValueError, match="activation: expected identity, relu"):
        _core.mask(name, x, x.copy(), 0.0)


HUGE = 2**62
WINDOWS: list[dict[str, Any]] = [
    {"window": (0, 2)},
    {"window": (-1, 2)},
    {"window": (2**32, 2**32)},
    {"window": (HUGE, 1)},
    {"window": (2**31, 1)},
    {"window": (HUGE, 0)},
    {"stride": (0, 2)},
    {"stride": (2, -1)},
    {"stride": (HUGE, 2)},
    {"pad": (2, 0)},
    {"pad": (-1, 0)},
    {"pad": (0, HUGE)},
    {"window": (HUGE, 2), "pad": (HUGE - 1, 0)},
    {"window": (-HUGE, -HUGE), "pad": (-HUGE, -HUGE)},
    {"out": (0, 3)},
    {"out": (-2, -3)},
    {"out": (3, 3)},
    {"out": (2, 4)},
    {"out": (2**32, 2**32)},
    {"out": (HUGE, HUGE)},
]


@pytest.mark.parametrize("changed", WINDOWS, ids=str)
def test_impossible_windows_are_refused(changed: dict[str, Any]) -> None:
    """Also where the shapes that follow from them would overflow to those that are there."""
    images, pooled = np.ones(IMAGES, np.float32), np.ones(POOLED, np.float32)
    geometry = GEOMETRY | changed
    outs = [PATCHES, (12, 0), (0, 12), (0, 0)]
    for patches in outs:
        for name in ("im2col", "col2im"):
            with pytest.raises(ValueError, match=r"window|images|expected shape"):
                getattr(_core, name)(images, **geometry, patches=np.ones(patches, np.float32))
    for name in ("avg_pool", "avg_pool_backward"):
        with pytest.raises(ValueError, match=r"window|images|expected shape"):
            getattr(_core, name)(images, **geometry, pooled=pooled)
    for forward in (True, False):
        with pytest.raises(ValueError, match=r"window|images|expected shape"):
            max_pool(images, pooled, forward=forward, **changed)


@pytest.mark.parametrize(("pixel"), [-1, 24, 2**31 - 1, -(2**31)])
def test_sources_out_of_the_image_are_refused(pixel: int) -> None:
    arrays = arrays_of("max_pool_backward")
    for place in (0, 17, 35):
        sources = np.zeros(POOLED, np.int32)
        sources.flat[place] = pixel
        refused("max_pool_backward", arrays | {"sources": sources}, ValueError, "sources: expected pixels of the image")


def test_wrong_sources_are_refused() -> None:
    good = np.zeros(POOLED, np.int32)
    for call in ("max_pool", "max_pool_backward"):
        arrays = arrays_of(call)
        for sources in (good.tolist(), good.astype(np.int64), good.astype(np.float32), good[:, :, ::-1], good.T):
            with pytest.raises(TypeError):
                CALLS[call][0](**arrays, sources=sources)
        for bad in (good[:1].copy(), good[0].copy(), np.zeros((2, 3, 2, 3), np.int32)):
            refused(call, arrays | {"sources": bad}, ValueError, "sources: expected shape")
        refused(call, arrays | {"sources": misaligned(good)}, ValueError, "sources: expected an aligned")
        for name in ("images", "pooled"):
            overlapping = arrays[name].view(np.int32).ravel()[:36].reshape(POOLED)
            refused(call, arrays | {"sources": overlapping}, ValueError, f"sources: .* overlaps {name}")
    refused("max_pool", arrays | {"sources": read_only(good)}, ValueError, "sources: expected an aligned, writeable")
    CALLS["max_pool_backward"][0](**arrays, sources=good)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (0, 0)])
def test_nothing_is_nothing(shape: tuple[int, ...]) -> None:
    x = np.ones(shape, np.float32)
    for activation in ACTIVATIONS:
        _core.activate(activation, x, np.ones(shape[-1], np.float32), 0.0, np.ones_like(x))
        _core.mask(activation, x, x.copy(), 0.0)
    _core.dropout(x, x.copy(), 0.5, np.ones_like(x))


@pytest.mark.parametrize(("batch", "channels"), [(0, 3), (2, 0), (0, 0)])
def test_no_images_and_no_channels(batch: int, channels: int) -> None:
    images = np.ones((batch, 4, 6, channels), np.float32)
    pooled = np.ones((batch, 2, 3, channels), np.float32)
    patches = np.ones((batch * 6, 4 * channels), np.float32)
    for name, other in (("im2col", patches), ("col2im", patches), ("avg_pool", pooled), ("avg_pool_backward", pooled)):
        getattr(_core, name)(images, *GEOMETRY.values(), other)
    for forward in (True, False):
        max_pool(images, pooled, np.ones(pooled.shape, np.int32), forward=forward)


def test_images_without_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="window: expected one that holds a pixel"):
        _core.im2col(np.ones((2, 0, 6, 3), np.float32), **GEOMETRY, patches=np.ones(PATCHES, np.float32))


# ---------------------------------------------------------------------------------------------
# Rows of a batch


@pytest.mark.parametrize("dtype", ["u1", "f4", ">f8", "U3", "i8,f4"])
@pytest.mark.parametrize("shape", [(40,), (5, 0), (7, 3), (90, 2000)], ids=str)
def test_taken_rows_are_those(dtype: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    array = rng.integers(0, 100, shape).astype(dtype)
    for n in (0, 1, 64):
        rows = rng.integers(0, len(array), n)
        out = np.empty((n, *shape[1:]), dtype)
        _core.take_rows(array, rows, out)
        np.testing.assert_array_equal(out, array[rows])


def test_rows_that_are_not_there_or_do_not_fit_change_nothing() -> None:
    array, out = np.arange(12.0).reshape(4, 3), np.full((2, 3), 7.0)
    read_only = out.copy()
    read_only.flags.writeable = False
    refused: list[tuple[Any, Any, Any, str]] = [
        (array, [3, 4], out, "rows: expected 0 to 3"),
        (array, [-1, 0], out, "rows: expected 0 to 3"),
        (array, [[0, 1]], out, "rows: expected one axis"),
        (array[:, ::2], [0, 1], out[:, :2], "array: expected rows next to each other"),
        (array.astype(object), [0, 1], out.astype(object), "array: .* of plain values"),
        (array, [0, 1], out.astype(np.float32), "out: expected dtype float64"),
        (array, [0, 1, 2], out, r"out: .* of shape \(3, 3\), got \(2, 3\)"),
        (array, [0, 1], read_only, "out: expected a writeable"),
        (array, [0, 1], array[1:3], "out: overlaps array"),
    ]
    for source, rows, target, message in refused:
        with pytest.raises((TypeError, ValueError), match=message):
            _core.take_rows(source, np.array(rows), target)
    assert (out == 7).all() and (array == np.arange(12).reshape(4, 3)).all()
