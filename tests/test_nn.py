"""Layers, their gradients, and the model around them."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from steepest import _core, nn
from steepest.nn import convolution


class Scale(nn.Layer):
    """A layer of one's own: y = factor x, with a value that the constructor derives."""

    def __init__(self, start: float = 1.0) -> None:
        self.start = start
        self.twice = 2 * start

    def build(self, input_shape: Any) -> Any:
        self.declare("factor", input_shape, lambda rng, shape: np.full(shape, self.twice / 2), decay=False)
        return input_shape

    def forward(self, x: Any, train: Any) -> Any:
        self.x = x
        return np.multiply(x, self.params["factor"], out=self.buffer("y", x.shape))

    def backward(self, grad: Any) -> Any:
        np.einsum("n...,n...->...", grad, self.x, out=self.grads["factor"])
        return np.multiply(grad, self.params["factor"], out=grad)


class Halved(nn.ReLU):
    """An activation of one's own that begins with a compiled one."""

    def activate(self, x: Any, bias: Any, out: Any) -> Any:
        return np.multiply(super().activate(x, bias, out), 0.5, out=out)

    def mask(self, grad: Any, y: Any) -> None:
        np.multiply(grad, 0.5 * (y > 0), out=grad)


# Every layer, alone and among others: layers, input shape
STACKS: dict[str, tuple[Callable[[], list[nn.Layer]], Any]] = {
    "dense": (lambda: [nn.Dense(4)], 6),
    "dense without bias": (lambda: [nn.Dense(4, bias=False)], 6),
    "relu": (lambda: [nn.ReLU()], (2, 3)),
    "dense relu": (lambda: [nn.Dense(5), nn.ReLU(), nn.Dense(3)], 6),
    "relu first": (lambda: [nn.ReLU(), nn.Dense(5), nn.ReLU()], 6),
    "relu twice": (lambda: [nn.Dense(5), nn.ReLU(), nn.ReLU(), nn.Dense(2)], 6),
    "flatten": (lambda: [nn.Flatten(), nn.Dense(3)], (2, 3)),
    "dropout": (lambda: [nn.Dense(8), nn.Dropout(0.4), nn.ReLU(), nn.Dense(3)], 6),
    "reshape": (lambda: [nn.Reshape((3, 2)), nn.ReLU(), nn.Flatten(), nn.Dense(3)], 6),
    "leaky relu": (lambda: [nn.Dense(5), nn.LeakyReLU(0.3), nn.Dense(3), nn.LeakyReLU()], 6),
    "tanh": (lambda: [nn.Dense(5), nn.Tanh(), nn.Tanh(), nn.Dense(3)], 6),
    "sigmoid": (lambda: [nn.Dense(5), nn.Sigmoid(), nn.Dense(3), nn.Sigmoid()], 6),
    "convolution": (lambda: [nn.Conv2D(4, 3)], (5, 6, 2)),
    "convolution, same": (lambda: [nn.Conv2D(2, (3, 2), padding="same", bias=False)], (4, 5, 3)),
    "convolution, strides": (lambda: [nn.Conv2D(3, 2, stride=(2, 3)), nn.Tanh()], (5, 8, 2)),
    "convolution, same, strides": (lambda: [nn.Conv2D(3, (4, 3), stride=2, padding="same"), nn.ReLU()], (5, 6, 1)),
    "convolutions": (
        lambda: [nn.Conv2D(3, 3), nn.ReLU(), nn.Conv2D(4, 1), nn.Sigmoid(), nn.Flatten(), nn.Dense(2)],
        (5, 4, 2),
    ),
    "max pool": (lambda: [nn.MaxPool2D()], (5, 6, 2)),
    "max pool, overlapping": (lambda: [nn.MaxPool2D(3, stride=(1, 2), padding="same")], (5, 6, 2)),
    "average pool": (lambda: [nn.AvgPool2D((2, 3))], (5, 6, 2)),
    "average pool, overlapping": (lambda: [nn.AvgPool2D(3, stride=2, padding="same")], (5, 6, 2)),
    "images": (
        lambda: [nn.Conv2D(3, 3), nn.MaxPool2D(), nn.ReLU(), nn.Dropout(0.3), nn.Conv2D(2, 2), nn.AvgPool2D(1)],
        (8, 8, 1),
    ),
    "own activation": (lambda: [nn.Dense(5), Halved(), nn.Dense(2)], 6),
    "own": (lambda: [Scale(1.5), nn.Dense(4), nn.ReLU(), Scale(0.5)], 6),
}


def build(name: Any, **options: Any) -> Any:
    layers, shape = STACKS[name]
    return nn.Sequential(layers(), shape, **options)


def batch(model: Any, n: int = 7, seed: int = 3) -> Any:
    return np.random.default_rng(seed).normal(size=(n, *model.input_shape)).astype(model.dtype)


def network(**options: Any) -> Any:
    return nn.Sequential([nn.Dense(16), nn.ReLU(), nn.Dense(3)], 5, **options)


@pytest.mark.parametrize("name", STACKS)
def test_gradients_match_finite_differences(name: Any) -> None:
    layers, shape = STACKS[name]
    model = nn.Sequential([Scale(), *layers()], shape, seed=1, dtype=np.float64)
    # Kinks away from zero: biases that are zero put a ReLU's input exactly there.
    model.params += np.random.default_rng(2).normal(size=model.params.size) * 0.1
    x = batch(model)
    upstream = np.random.default_rng(4).normal(size=(len(x), *model.output_shape))
    state = model.random_state

    def value() -> Any:
        model.random_state = state
        return float((model.forward(x, train=True) * upstream).sum())

    def numeric(array: Any) -> Any:
        flat, slopes = array.reshape(-1), np.empty(array.size)
        for i in range(flat.size):
            kept = flat[i]
            flat[i] = kept + 1e-6
            above = value()
            flat[i] = kept - 1e-6
            slopes[i] = (above - value()) / 2e-6
            flat[i] = kept
        return slopes.reshape(array.shape)

    model.layers[0].needs_input_gradient = True
    value()
    gradient = np.copy(model.backward(upstream.copy()))  # type: ignore[arg-type]
    np.testing.assert_allclose(model.grads, numeric(model.params), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(gradient, numeric(x), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_and_shape(name: Any, dtype: Any) -> None:
    model = build(name, dtype=dtype)
    for n in (4, 9, 1, 0):
        outputs = model.forward(batch(model, n), train=True)
        assert outputs.shape == (n, *model.output_shape)
        assert outputs.dtype == dtype


@pytest.mark.parametrize("name", STACKS)
def test_a_smaller_batch_gives_the_rows_of_a_larger_one(name: Any) -> None:
    model = build(name)
    x = batch(model, 16)
    whole = model.forward(x).copy()
    np.testing.assert_allclose(model.forward(x[:5]), whole[:5], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", STACKS)
def test_copies_are_equal_and_independent(name: Any) -> None:
    model = build(name)
    model.params += np.float32(0.25)
    x = batch(model)
    twins = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    outputs = model.forward(x, True)
    for twin in twins:
        np.testing.assert_array_equal(twin.forward(x, True), outputs)
        twin.params += 1
        assert not np.any(twin.params == model.params)
        assert all(np.shares_memory(v, twin.params) for v in twin.named_parameters().values())


@pytest.mark.parametrize("name", STACKS)
def test_config_makes_the_same_model(name: Any) -> None:
    model = build(name, seed=5)
    twin = nn.Sequential.from_config(model.config(), custom={"Scale": Scale, "Halved": Halved})
    np.testing.assert_array_equal(twin.params, model.params)
    assert repr(twin) == repr(model)


def test_config_keeps_initialisers_and_refuses_unknown_names() -> None:
    model = nn.Sequential([nn.Dense(4, init=nn.init.he_uniform)], 3)
    config = model.config()
    assert config["layers"][0]["init"] == "he_uniform"
    np.testing.assert_array_equal(nn.Sequential.from_config(config).params, model.params)
    config["layers"][0]["type"] = "eval"
    with pytest.raises(ValueError, match="unknown layer or initialiser 'eval'"):
        nn.Sequential.from_config(config)


def constant(rng: np.random.Generator, shape: tuple[int, ...], value: float = 0.0) -> Any:
    return np.full(shape, value)


def test_config_keeps_a_partial_initialiser() -> None:
    model = nn.Sequential([nn.Dense(4, init=functools.partial(constant, value=0.25))], 3)
    config = json.loads(json.dumps(model.config()))
    assert "constant" in repr(model)
    twin = nn.Sequential.from_config(config, custom={"constant": constant})
    np.testing.assert_array_equal(twin.params, model.params)
    assert model.params[0] == 0.25 and twin.config() == config
    with pytest.raises(ValueError, match="unknown layer or initialiser 'constant'"):
        nn.Sequential.from_config(config)


@pytest.mark.parametrize("activation", [None, nn.Tanh(), Halved()], ids=repr)
def test_small_products_have_the_same_bits_with_any_threads_isa_and_batch(activation: Any) -> None:
    """And nearly those of BLAS, which takes over where they are large."""
    rng = np.random.default_rng(0)
    x, grad = rng.normal(size=(70, 300)).astype(np.float32), rng.normal(size=(70, 20)).astype(np.float32)

    def run(rows: int = 70) -> list[Any]:
        behind = [] if activation is None else [copy.deepcopy(activation)]
        model = nn.Sequential([nn.Dense(90), *behind, nn.Dense(20)], 300)
        outputs = model.forward(x[:rows], train=True).copy()
        model.backward(grad[:rows].copy())
        return [outputs, model.grads.copy()]

    _core._set_isa(_core.build_info()["isas"][-1])
    expected = run()
    for isa, threads in itertools.product(_core.build_info()["isas"], (1, 3)):
        _core._set_isa(isa)
        _core.set_num_threads(threads)
        for actual, wanted in zip(run(), expected, strict=True):
            np.testing.assert_array_equal(actual, wanted)
        np.testing.assert_array_equal(run(7)[0], expected[0][:7])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("steepest.nn.layers.SMALL_WORK", 0)
        for actual, wanted in zip(run(), expected, strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=1e-3, atol=1e-3)


def test_weights_come_first_and_biases_have_no_decay() -> None:
    model = network()
    weights, biases = model.param_groups(weight_decay=0.1, l1=0.5)
    assert weights["params"].size == 5 * 16 + 16 * 3
    assert biases["params"].size == 16 + 3
    assert (weights["weight_decay"], weights["l1"]) == (0.1, 0.5)
    assert (biases["weight_decay"], biases["l1"]) == (0.0, 0.0)
    assert "weight_decay" not in model.param_groups()[0]
    assert not biases["params"].any()
    for group, gradient in zip(model.param_groups(), model.gradients(), strict=True):
        assert np.shares_memory(group["params"], model.params)
        assert np.shares_memory(gradient, model.grads)
        assert gradient.shape == group["params"].shape


def test_parameters_are_one_flat_aligned_array() -> None:
    model = network()
    named = model.named_parameters()
    assert list(named) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    named["2.weight"][...] = 7
    assert (model.params == 7).sum() == 48
    assert model.params.ctypes.data % 64 == model.grads.ctypes.data % 64 == 0
    assert model.params.flags.c_contiguous


def test_empty_groups_are_left_out() -> None:
    model = nn.Sequential([nn.Dense(4, bias=False)], 3)
    assert len(model.param_groups()) == len(model.gradients()) == 1
    with pytest.raises(ValueError, match="nothing to train"):
        nn.Sequential([nn.ReLU()], 3).param_groups()


def test_frozen_layers_are_left_alone() -> None:
    model = network()
    model.freeze(2)
    assert [g["params"].size for g in model.param_groups()] == [48, 3]
    model.grads[...] = np.nan
    model.forward(batch(model), True)
    assert model.backward(np.ones((7, 3), np.float32)) is None
    assert all(np.isfinite(g).all() for g in model.gradients())
    assert np.isnan(model.layers[0].grads["weight"]).all()
    with pytest.raises(ValueError, match="expected 0 to 3 layers, got 4"):
        model.freeze(4)


def test_the_first_layer_computes_no_input_gradient() -> None:
    model = network()
    model.forward(batch(model), True)
    assert model.backward(np.ones((7, 3), np.float32)) is None


def test_a_step_allocates_nothing_large() -> None:
    import tracemalloc

    model = nn.Sequential([nn.Dense(256), nn.ReLU(), nn.Dense(256)], 512)
    x, grad = batch(model, 64), np.ones((64, 256), np.float32)
    model.forward(x, True)
    model.backward(grad)
    tracemalloc.start()
    model.forward(x, True)
    model.backward(grad)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000  # an activation has 65,536 bytes; NumPy casts in buffers of 32,768


def test_seeds() -> None:
    assert not np.array_equal(network(seed=1).params, network(seed=2).params)
    np.testing.assert_array_equal(network(seed=1).params, network(seed=1).params)
    # A layer draws from its own generator: what comes before does not matter.
    longer = nn.Sequential([nn.Dense(5), nn.ReLU(), nn.Dense(3)], 5, seed=1)
    shorter = nn.Sequential([Scale(), nn.ReLU(), nn.Dense(3)], 5, seed=1)
    np.testing.assert_array_equal(longer.named_parameters()["2.weight"], shorter.named_parameters()["2.weight"])


@pytest.mark.parametrize(
    ("init", "variance", "bound"),
    [
        (nn.init.he_normal, 2 / 400, np.inf),
        (nn.init.he_uniform, 2 / 400, np.sqrt(6 / 400)),
        (nn.init.glorot_normal, 2 / 700, np.inf),
        (nn.init.glorot_uniform, 2 / 700, np.sqrt(6 / 700)),
        (nn.init.zeros, 0, 0),
    ],
)
def test_initial_values(init: Any, variance: Any, bound: Any) -> None:
    values = init(np.random.default_rng(0), (400, 300))
    assert values.var() == pytest.approx(variance, rel=0.03)
    assert abs(values.mean()) <= 3 * np.sqrt(variance / values.size)
    assert np.abs(values).max() <= bound
    window = init(np.random.default_rng(0), (2, 2, 100, 75))
    assert window.var() == pytest.approx(variance, rel=0.05)


def test_dense_initialises_for_what_follows() -> None:
    rectified = nn.Sequential([nn.Dense(300), nn.ReLU()], 400).layers[0].params["weight"]
    plain = nn.Sequential([nn.Dense(300)], 400).layers[0].params["weight"]
    assert rectified.var() == pytest.approx(2 / 400, rel=0.03)
    assert plain.var() == pytest.approx(2 / 700, rel=0.03)
    with pytest.raises(ValueError, match="no fan-in"):
        nn.init.he_normal(np.random.default_rng(0), (3,))


def test_dropout() -> None:
    model = nn.Sequential([nn.Dropout(0.25)], 1000)
    x = np.ones((50, 1000), np.float32)
    assert model.forward(x) is x
    first = model.forward(x, True).copy()
    assert np.mean(first == 0) == pytest.approx(0.25, abs=0.01)
    assert set(np.unique(first)) == {np.float32(0), np.float32(1 / 0.75)}
    state = model.random_state
    second = model.forward(x, True).copy()
    assert not np.array_equal(first, second)
    model.random_state = state
    np.testing.assert_array_equal(model.forward(x, True), second)
    np.testing.assert_array_equal(model.layers[0].backward(x.copy()), second)


def same_padding(size: int, window: int, stride: int) -> tuple[int, int]:
    """As TensorFlow documents it."""
    rest = size % stride or stride
    total = max(window - rest, 0)
    return total // 2, total - total // 2


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(("window", "stride"), [((3, 3), 1), ((2, 3), 1), ((4, 1), (3, 2)), ((5, 2), 2), (1, (2, 3))])
def test_convolution_is_a_product_with_every_window(padding: Any, window: Any, stride: Any) -> None:
    model = nn.Sequential([nn.Conv2D(4, window, stride=stride, padding=padding)], (7, 8, 3), dtype=np.float64, seed=1)
    model.params[-4:] = 1, 2, 3, 4
    x = batch(model)
    height, width = np.broadcast_to(window, 2)
    down, right = np.broadcast_to(stride, 2)
    padded = x
    if padding == "same":
        sides = [same_padding(n, *axis) for n, *axis in zip((7, 8), (height, width), (down, right), strict=True)]
        padded = np.pad(x, [(0, 0), *sides, (0, 0)])
    views = sliding_window_view(padded, (height, width), (1, 2))[:, ::down, ::right]
    products = np.einsum("nrcdij,ijdf->nrcf", views, model.named_parameters()["0.weight"])
    expected = products + np.arange(1, 5)
    np.testing.assert_allclose(model.forward(x), expected, rtol=1e-12, atol=1e-12)
    assert model.output_shape == expected.shape[1:]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("images", [1, 2, 7, 100])
def test_convolution_in_parts(images: int, bias: Any, monkeypatch: Any) -> None:
    """Patches that don't fit the memory for them are made again, part by part."""

    def gradients(model: Any, x: Any) -> Any:
        model.layers[0].needs_input_gradient = True
        outputs = model.forward(x, True).copy()
        return outputs, np.copy(model.backward(np.cos(outputs))), model.grads.copy()

    def make() -> Any:
        return nn.Sequential([nn.Conv2D(3, 3, bias=bias), nn.ReLU()], (5, 6, 2), dtype=np.float64)

    x = batch(make())
    whole = gradients(make(), x)
    monkeypatch.setattr(convolution, "PATCH_BYTES", images * 12 * 18 * 8)
    parts = make()
    for result, expected in zip(gradients(parts, x), whole, strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-12)
    assert parts.layers[0].buffer("patches", (1, 18)).base.shape == (min(images, 7) * 12, 18)
    grads = parts.grads.copy()
    parts.backward(np.cos(whole[0]))
    np.testing.assert_array_equal(parts.grads, grads)  # though the patches were overwritten


def test_patches_take_bounded_memory() -> None:
    import tracemalloc

    model = nn.Sequential([nn.Conv2D(1, 3, padding="same")], (64, 64, 16))
    x = batch(model, 64)
    tracemalloc.start()
    model.forward(x, True)
    model.backward(np.ones((64, 64, 64, 1), np.float32))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20  # all patches would be 144 MiB


def test_pooling_keeps_to_the_pixels_inside() -> None:
    x = -np.arange(1, 10, dtype=np.float32).reshape(1, 3, 3, 1)
    largest = nn.Sequential([nn.MaxPool2D(2, padding="same")], (3, 3, 1)).forward(x)
    np.testing.assert_array_equal(largest[0, :, :, 0], [[-1, -3], [-7, -9]])
    mean = nn.Sequential([nn.AvgPool2D(2, padding="same")], (3, 3, 1)).forward(x)
    np.testing.assert_array_equal(mean[0, :, :, 0], [[-3, -4.5], [-7.5, -9]])


def test_a_maximum_that_ties_goes_to_the_first() -> None:
    model = nn.Sequential([nn.MaxPool2D()], (2, 2, 1))
    model.forward(np.ones((1, 2, 2, 1), np.float32))
    gradient = model.layers[0].backward(np.full((1, 1, 1, 1), 5, np.float32))
    assert gradient is not None
    np.testing.assert_array_equal(gradient.ravel(), [5, 0, 0, 0])


def test_grey_images_need_no_channel() -> None:
    model = nn.Sequential([nn.Conv2D(2, 3)], (5, 6, 1))
    x = batch(model)
    expected = model.forward(x).copy()
    np.testing.assert_array_equal(model.forward(x[..., 0]), expected)
    np.testing.assert_array_equal(model.forward(x[..., 0].astype(np.float64)), expected)
    reshaped = nn.Sequential([nn.Reshape((5, 6, 1)), nn.Conv2D(2, 3)], (5, 6))
    reshaped.params[...] = model.params
    np.testing.assert_array_equal(reshaped.forward(x[..., 0]), expected)
    with pytest.raises(ValueError, match=r"x: expected shape \(batch, 5, 6, 1\), got \(7, 5\)"):
        model.forward(x[..., 0, 0])


@pytest.mark.parametrize("layer", [nn.ReLU, nn.LeakyReLU])
def test_convolution_initialises_for_what_follows(layer: Any) -> None:
    weight = nn.Sequential([nn.Conv2D(64, 5), layer()], (5, 5, 30)).layers[0].params["weight"]
    assert weight.shape == (5, 5, 30, 64)
    assert weight.var() == pytest.approx(2 / (25 * 30), rel=0.03)


def test_a_gradient_of_another_kind_is_converted() -> None:
    model = nn.Sequential([nn.Dense(4), nn.ReLU()], 5)
    gradient = np.random.default_rng(0).normal(size=(4, 7)).T
    model.forward(batch(model), True)
    model.backward(np.ascontiguousarray(gradient, np.float32))
    grads = model.grads.copy()
    kept = gradient.copy()
    model.forward(batch(model), True)
    model.backward(gradient)
    np.testing.assert_array_equal(model.grads, grads)
    np.testing.assert_array_equal(gradient, kept)
    with pytest.raises(TypeError, match="grad: expected real numbers, got complex128"):
        model.backward(gradient + 0j)


# A layer, the same in PyTorch, and an input of (batch, height, width, channels)
PEERS: dict[str, tuple[Callable[[], list[nn.Layer]], Callable[[Any], Any]]] = {
    "dense": (lambda: [nn.Flatten(), nn.Dense(5)], lambda t: [t.Flatten(), t.Linear(96, 5)]),
    "convolution": (lambda: [nn.Conv2D(4, (3, 2))], lambda t: [t.Conv2d(2, 4, (3, 2))]),
    "strided": (lambda: [nn.Conv2D(4, 3, stride=(2, 1))], lambda t: [t.Conv2d(2, 4, 3, stride=(2, 1))]),
    "same": (lambda: [nn.Conv2D(4, 3, padding="same")], lambda t: [t.Conv2d(2, 4, 3, padding="same")]),
    "no bias": (lambda: [nn.Conv2D(4, 5, bias=False)], lambda t: [t.Conv2d(2, 4, 5, bias=False)]),
    "max pool": (lambda: [nn.MaxPool2D((2, 3), stride=2)], lambda t: [t.MaxPool2d((2, 3), stride=2)]),
    "same max pool": (
        lambda: [nn.MaxPool2D(3, stride=1, padding="same")],
        lambda t: [t.MaxPool2d(3, stride=1, padding=1)],
    ),
    "average pool": (lambda: [nn.AvgPool2D(3, stride=2)], lambda t: [t.AvgPool2d(3, stride=2)]),
    "same average pool": (
        lambda: [nn.AvgPool2D(3, stride=1, padding="same")],
        lambda t: [t.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)],
    ),
    "relu": (lambda: [nn.ReLU()], lambda t: [t.ReLU()]),
    "leaky relu": (lambda: [nn.LeakyReLU()], lambda t: [t.LeakyReLU()]),
    "tanh": (lambda: [nn.Conv2D(3, 3), nn.Tanh()], lambda t: [t.Conv2d(2, 3, 3), t.Tanh()]),
    "sigmoid": (lambda: [nn.Conv2D(3, 3), nn.Sigmoid()], lambda t: [t.Conv2d(2, 3, 3), t.Sigmoid()]),
}


@pytest.mark.torch
@pytest.mark.parametrize("name", PEERS)
def test_layers_equal_those_of_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    layers, peers = PEERS[name]
    model = nn.Sequential(layers(), (6, 8, 2), dtype=np.float64)
    model.params[...] = np.random.default_rng(1).normal(size=model.params.size)
    peer = torch.nn.Sequential(*peers(torch.nn)).double()
    weights = list(peer.parameters())
    for parameter, value in zip(weights, model.named_parameters().values(), strict=True):
        to_torch = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}[value.ndim]
        parameter.data = torch.tensor(value.transpose(to_torch).copy())

    x = batch(model)
    flat = isinstance(model.layers[0], nn.Flatten)  # whose order is that of the axes
    theirs = torch.tensor(x if flat else x.transpose(0, 3, 1, 2), requires_grad=True)
    there = peer(theirs)
    upstream = np.random.default_rng(2).normal(size=(len(x), *model.output_shape))
    there.backward(torch.tensor(upstream if flat else upstream.transpose(0, 3, 1, 2)))

    def here(tensor: Any) -> Any:
        value = tensor.detach().numpy()
        return value if flat else value.transpose(0, 2, 3, 1)

    for layer in model.layers:
        layer.needs_input_gradient = True
    np.testing.assert_allclose(model.forward(x, True), here(there), rtol=1e-12, atol=1e-12)
    model._backward = [layer.backward for layer in reversed(model.layers)]
    gradient = model.backward(upstream)
    assert gradient is not None
    np.testing.assert_allclose(gradient, here(theirs.grad), rtol=1e-11, atol=1e-12)
    for parameter, layer_name in zip(weights, model.named_parameters(), strict=True):
        index, kind = layer_name.split(".")
        value = model.layers[int(index)].grads[kind]
        to_torch = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}[value.ndim]
        np.testing.assert_allclose(value.transpose(to_torch), parameter.grad.numpy(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float64, np.float16, bool, ">f4"])
def test_batches_are_converted(dtype: Any) -> None:
    model = network()
    x = (np.arange(20).reshape(4, 5) % 2).astype(dtype)
    kept = x.copy()
    np.testing.assert_array_equal(model.forward(x).copy(), model.forward(np.ascontiguousarray(x, np.float32)))
    np.testing.assert_array_equal(x, kept)


def test_strided_batches_are_taken() -> None:
    model = network()
    x = batch(model, 8)
    whole = model.forward(x).copy()
    np.testing.assert_allclose(model.forward(np.asfortranarray(x)), whole, rtol=1e-6)
    np.testing.assert_allclose(model.forward(x[::-1]), whole[::-1], rtol=1e-5)


def test_refusals() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"x: expected shape \(batch, 5\), got \(2, 4\)"):
        model.forward(np.ones((2, 4), np.float32))
    with pytest.raises(TypeError, match="x: expected real numbers, got complex128"):
        model.forward(np.ones((2, 5), complex))
    with pytest.raises(ValueError, match="part of a model already"):
        nn.Sequential(model.layers, 5)
    with pytest.raises(TypeError, match="dtype: expected float32 or float64, got float16"):
        network(dtype=np.float16)
    with pytest.raises(TypeError, match=r"layers: expected instances of nn\.Layer"):
        nn.Sequential([nn.Dense], 5)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="input_shape: expected positive integers, got 0"):
        nn.Sequential([], 0)
    with pytest.raises(ValueError, match="put Flatten before"):
        nn.Sequential([nn.Dense(3)], (4, 4))
    with pytest.raises(ValueError, match="units: expected a positive integer, got 0"):
        nn.Dense(0)
    with pytest.raises(ValueError, match="rate: expected 0 <= rate < 1, got 1"):
        nn.Dropout(1)
    with pytest.raises(ValueError, match="negative_slope: expected a finite number >= 0, got -1"):
        nn.LeakyReLU(-1)
    with pytest.raises(ValueError, match=r"shape: \(4, 4\) cannot become \(5, 3\)"):
        nn.Sequential([nn.Reshape((5, 3))], (4, 4))
    with pytest.raises(ValueError, match="shape: expected positive integers"):
        nn.Reshape((-1, 3))
    with pytest.raises(TypeError, match="seed: expected an integer, got NoneType"):
        nn.Sequential([nn.Dense(2)], 5, seed=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed: expected an integer >= 0, got -1"):
        nn.Sequential([nn.Dense(2)], 5, seed=-1)
    with pytest.raises(ValueError, match="grad: expected forward to be called before"):
        nn.Sequential([nn.Dense(2), nn.Dropout(0.5)], 5).backward(np.ones((2, 2), np.float32))
    with pytest.raises(NotImplementedError, match="Layer has no forward"):
        nn.Sequential([nn.Layer()], 3).forward(np.ones((1, 3), np.float32))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.Conv2D(0, 3), ValueError, "filters: expected a positive integer, got 0"),
        (lambda: nn.Conv2D(1.5, 3), TypeError, "float"),  # type: ignore[arg-type]
        (lambda: nn.Conv2D(4, 0), ValueError, "kernel_size: expected a positive integer, or two of them, got 0"),
        (lambda: nn.Conv2D(4, (3, 3, 3)), ValueError, "kernel_size: .* got \\(3, 3, 3\\)"),  # type: ignore[arg-type]
        (lambda: nn.Conv2D(4, 2.0), TypeError, "kernel_size: expected an integer"),  # type: ignore[arg-type]
        (lambda: nn.Conv2D(4, "33"), TypeError, "kernel_size: expected an integer"),  # type: ignore[arg-type]
        (lambda: nn.Conv2D(4, 3, stride=(1, -1)), ValueError, "stride: expected a positive integer"),
        (lambda: nn.Conv2D(4, 3, padding="full"), ValueError, "padding: expected 'valid' or 'same', got 'full'"),  # type: ignore[arg-type]
        (lambda: nn.MaxPool2D(()), ValueError, "pool_size: expected a positive integer"),  # type: ignore[arg-type]
        (lambda: nn.AvgPool2D(2, stride=0), ValueError, "stride: expected a positive integer"),
    ],
)
def test_windows_that_cannot_be(make: Any, error: Any, message: Any) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("layer", [lambda: nn.Conv2D(4, 3), lambda: nn.MaxPool2D(3), lambda: nn.AvgPool2D(3)])
def test_images_that_do_not_fit(layer: Any) -> None:
    with pytest.raises(ValueError, match=r"takes images \(height, width, channels\), .* Reshape\(\(28, 28, 1\)\)"):
        nn.Sequential([layer()], (28, 28))
    with pytest.raises(ValueError, match=r"got \(784,\); put Reshape\(\(height, width, channels\)\) before"):
        nn.Sequential([layer()], 784)
    with pytest.raises(ValueError, match=r"window of \(3, 3\) does not fit into \(2, 5\); padding='same' makes it fit"):
        nn.Sequential([layer()], (2, 5, 1))
    with pytest.raises(ValueError, match=r"x: expected shape \(batch, 5, 5, 2\), got \(3, 5, 5\)"):
        nn.Sequential([layer()], (5, 5, 2)).forward(np.ones((3, 5, 5), np.float32))


def test_a_copied_layer_starts_anew() -> None:
    model = network()
    other = nn.Sequential([copy.deepcopy(model.layers[0])], 7)
    assert other.output_shape == (16,)
    assert other.layers[0].activation is None


def test_a_convolution_multiplies_everywhere() -> None:
    assert network().multiplications == network().params.size
    model = nn.Sequential([nn.Conv2D(4, 3), nn.ReLU(), nn.Flatten(), nn.Dense(2)], (5, 6, 2))
    assert model.multiplications == 12 * (18 * 4 + 4) + (48 * 2 + 2)


def test_a_refused_model_leaves_its_layers_free() -> None:
    layers = [nn.Dense(3), nn.ReLU(), nn.Dense(2)]
    with pytest.raises(ValueError, match="put Flatten before"):
        nn.Sequential(layers, input_shape=(2, 2))
    with pytest.raises(ValueError, match="broadcast"):
        nn.Sequential([*layers, nn.Dense(2, init=lambda rng, shape: np.ones(7))], input_shape=4)
    model = nn.Sequential(layers, input_shape=4)
    with pytest.raises(ValueError, match="part of a model already"):
        nn.Sequential(layers, input_shape=4)
    assert model.forward(np.ones((1, 4), np.float32)).shape == (1, 2)


def test_random_states_that_do_not_fit_change_nothing() -> None:
    model, before = nn.Sequential([nn.Dense(3), nn.Dropout(0.5)], 4), None
    before = model.random_state
    with pytest.raises(ValueError, match="random_state: expected the states of 2 layers, got 1"):
        model.random_state = nn.Sequential([nn.Dense(3)], 4, seed=7).random_state
    with pytest.raises((TypeError, ValueError)):
        model.random_state = [nn.Sequential([nn.Dense(3)], 4, seed=7).random_state[0], {"bit_generator": "none"}]
    assert model.random_state == before


def test_summary() -> None:
    lines = network().summary().splitlines()
    assert lines[1].split() == ["Dense(units=16)", "(16,)", "96"]
    assert lines[-1].split() == ["total", "147"]


class Straight(nn.ReLU):
    def mask(self, grad: Any, y: Any) -> None:
        """The gradient goes through."""


class Doubled(nn.Tanh):
    def forward(self, x: Any, train: bool) -> Any:
        return 2 * super().forward(x, train)


class Undone(nn.Sigmoid):
    def backward(self, grad: Any) -> Any:
        return 0 * grad


@pytest.mark.parametrize("apart", [False, True])
def test_activations_that_change_one_method_are_what_they_say(apart: bool) -> None:
    """In a chain of dense layers as in any other model."""
    x = -np.ones((1, 1))

    def run(activation: Any) -> tuple[float, float]:
        layers = [nn.Dense(1), activation, *[nn.Reshape((1,))] * apart]
        model = nn.Sequential(layers, 1, dtype=np.float64)
        model.params[:] = 1, 0
        y = model.forward(x).item()
        model.backward(np.ones((1, 1)))
        return y, model.grads[1].item()

    assert run(Straight()) == (0, 1)
    assert run(Doubled())[0] == pytest.approx(2 * np.tanh(-1))
    assert run(Undone())[1] == 0


def test_what_is_no_array_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^x: expected a numpy.ndarray, got list"):
        nn.Sequential([nn.Dense(1)], 3).forward([[1, 2, 3]])  # type: ignore[arg-type]
