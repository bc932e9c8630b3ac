"""Layers, their gradients, and the model around them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steepest import nn


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
    twin = nn.Sequential.from_config(model.config(), custom={"Scale": Scale})
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
    with pytest.raises(NotImplementedError, match="Layer has no forward"):
        nn.Sequential([nn.Layer()], 3).forward(np.ones((1, 3), np.float32))


def test_a_copied_layer_starts_anew() -> None:
    model = network()
    other = nn.Sequential([copy.deepcopy(model.layers[0])], 7)
    assert other.output_shape == (16,)
    assert other.layers[0].activation is None


def test_summary() -> None:
    lines = network().summary().splitlines()
    assert lines[1].split() == ["Dense(units=16)", "(16,)", "96"]
    assert lines[-1].split() == ["total", "147"]
