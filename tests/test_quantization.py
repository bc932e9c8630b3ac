"""Quantised models: they compute what their description says, stay close to the floats, and come back from files."""

from __future__ import annotations

import copy
import itertools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import steepest as sp
from steepest import _core, _storage, cli, compress, nn, reference
from steepest.compress import QuantizedConv2D, QuantizedDense, QuantizedModel
from steepest.nn.layer import Layer

Array = NDArray[Any]


def dense(seed: int = 0, **options: Any) -> nn.Sequential:
    layers = [nn.Dense(37), nn.ReLU(), nn.Dropout(0.5), nn.Dense(20, bias=False), nn.Tanh(), nn.Dense(5)]
    return shaken(nn.Sequential(layers, input_shape=23, seed=seed, **options))


def images(padding: Any = "same") -> nn.Sequential:
    layers = [
        *(nn.Conv2D(7, 3, padding=padding), nn.ReLU(), nn.MaxPool2D(2, padding=padding)),
        *(
            nn.Conv2D(18, (2, 3), stride=2),
            nn.LeakyReLU(),
            nn.AvgPool2D(2, padding="same"),
            nn.Conv2D(5, 1, bias=False),
        ),
        *(nn.MaxPool2D(1), nn.Flatten(), nn.Dense(9), nn.Sigmoid(), nn.Dense(4), nn.ReLU()),
    ]
    return shaken(nn.Sequential(layers, input_shape=(12, 11, 2), seed=1))


def shaken(model: nn.Sequential) -> nn.Sequential:
    """With biases that are not zero."""
    rng = np.random.default_rng(5)
    model.params[...] += 0.1 * rng.standard_normal(model.params.size).astype(model.dtype)
    return model


def samples(model: nn.Sequential, n: int = 300) -> Array:
    x = np.random.default_rng(7).normal(0.3, 1, (n, *model.input_shape))
    return np.asarray(x, np.float32)


MODELS: dict[str, Callable[[], nn.Sequential]] = {
    "dense": dense,
    "images": images,
    "images, valid": lambda: images("valid"),
}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


# ---------------------------------------------------------------------------------------------
# What is computed


def described(model: Any, x: Array) -> Array:
    """The outputs as `steepest.compress.quantized` describes them: every layer alone, from float32 to float32."""
    for layer in model.layers:
        if hasattr(layer, "bits"):
            code = layer.input or reference.byte_code(float(x.min()), float(x.max()))
            q = reference.quantize(x, *code)
            conv = isinstance(layer, QuantizedConv2D)
            scale = np.float32(code[0]) * layer.scale
            formula: Any = reference.quantized_product
            y = formula(q if conv else q[:, None, None], *layer.window, code[1], layer.weight, scale, layer.bias)
            x = y.reshape(len(x), *layer.output_shape) if conv else y
        elif type(layer).__name__ == "QuantizedMaxPool2D":
            x = reference.max_pool(x, *layer.window)[0]
        elif hasattr(layer, "kernel"):
            x = reference.activate(layer.kernel, x, None, layer.slope)
        else:
            x = layer.forward(x, False)
    return x


@every_model
@pytest.mark.parametrize("static", [True, False], ids=["static", "dynamic"])
@pytest.mark.parametrize("bits", [8, 1])
def test_a_model_computes_what_its_description_says(make: Any, static: bool, bits: int, isa: str) -> None:
    model = make()
    x = samples(model)
    quantized = compress.quantize(model, x[:100] if static else None, bits=bits, percentile=99.5 if static else 100)
    assert {layer.input is not None for layer in quantized.quantized_layers} == {static}
    expected = described(quantized, x)
    np.testing.assert_array_equal(quantized.forward(x), expected)
    _core.set_num_threads(3)
    _core._share_blocks_of(1)
    np.testing.assert_array_equal(quantized.forward(x), expected)
    assert all(n > 0 for n in _core._blocks_run())


@every_model
def test_outputs_are_close_to_those_of_floats(make: Any) -> None:
    model = make()
    x = samples(model)
    expected = model.forward(x).copy()
    for calibration in (x, None):
        error = np.abs(compress.quantize(model, calibration).forward(x) - expected)
        assert error.max() < 0.06 * np.abs(expected).max()
        assert error.mean() < 0.015 * np.abs(expected).max()


def test_static_outputs_do_not_depend_on_the_batch_and_dynamic_ones_on_its_range_alone() -> None:
    model = dense()
    x = samples(model)
    static, dynamic = compress.quantize(model, x), compress.quantize(model)
    alone = np.concatenate([static.forward(row[None]).copy() for row in x])
    np.testing.assert_array_equal(alone, static.forward(x))
    whole = dynamic.forward(x).copy()
    assert not np.array_equal(np.concatenate([dynamic.forward(row[None]).copy() for row in x]), whole)
    np.testing.assert_array_equal(dynamic.forward(x[::-1].copy()), whole[::-1])


def test_bytes_go_from_static_layer_to_static_layer_where_order_is_kept() -> None:
    quantized = compress.quantize(images(), samples(images()))
    first, second, third, fourth, fifth = quantized.quantized_layers
    assert first.emits == second.input and third.emits == fourth.input
    assert second.emits is fourth.emits is fifth.emits is None  # leaky ReLU and means; sigmoid; the end
    assert all(layer.emits is None for layer in compress.quantize(images()).quantized_layers)


@settings(max_examples=60)
@given(data=st.data())
def test_any_product(data: st.DataObject) -> None:
    batch, inputs, units = (data.draw(st.integers(1, high)) for high in (60, 1100, 300))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    _core._set_isa(data.draw(st.sampled_from(_core.build_info()["isas"])))
    _core.set_num_threads(data.draw(st.sampled_from([1, 3])))
    _core._share_blocks_of(1)
    layer = QuantizedDense(
        rng.integers(-127, 128, (inputs, units), np.int8),
        rng.uniform(0, 1, units).astype(np.float32),
        rng.normal(size=units).astype(np.float32),
        (0.5, int(rng.integers(256))),
    )
    model = QuantizedModel([layer], inputs)
    x = rng.integers(-300, 300, (batch, inputs)) / np.float32(2)
    np.testing.assert_array_equal(model.forward(x), described(model, x))


# ---------------------------------------------------------------------------------------------
# Weights and ranges


def test_weights_are_rounded_for_each_unit_alone() -> None:
    model = dense()
    w = model.layers[0].params["weight"]
    w[:, 1], w[:, 2] = 0, 1e-42
    w[:, 3] *= 1e20
    layer = compress.quantize(model).quantized_layers[0]
    assert layer.weight.dtype == np.int8 and np.abs(layer.weight[:, [0, 3, 4]]).max(0).tolist() == [127] * 3
    assert layer.scale[1] == layer.scale[2] == 1 and not layer.weight[:, 1:3].any()
    assert (np.abs(layer.weight * layer.scale - w) <= 0.5001 * layer.scale).all()
    np.testing.assert_array_equal(layer.bias, model.layers[0].params["bias"])


def test_binary_weights_are_signs_times_the_mean_magnitude() -> None:
    model = dense()
    first, second, third = compress.quantize(model, bits=(8, 1, 8)).quantized_layers
    w = model.layers[3].params["weight"]
    np.testing.assert_array_equal(second.weight, np.where(w < 0, -1, 1))
    np.testing.assert_allclose(second.scale, np.abs(w).mean(0), rtol=1e-6)
    assert (first.bits, second.bits, third.bits) == (8, 1, 8)


@pytest.mark.parametrize("percentile", [100, 99, 80.5])
def test_ranges_leave_out_what_the_percentile_says(percentile: float) -> None:
    model = nn.Sequential([nn.Dense(2)], input_shape=3)
    x = samples(model, 1000)
    ordered = np.sort(x.ravel())
    k = int((100 - percentile) * x.size / 100)
    layer = compress.quantize(model, x, percentile=percentile).quantized_layers[0]
    assert layer.input == reference.byte_code(float(ordered[k]), float(ordered[-1 - k]))


def test_a_range_holds_zero_and_zero_is_exact() -> None:
    for low, high in ((1.0, 5.0), (-5.0, -1.0), (-1.0, 2.0), (0.0, 0.0), (0.0, 1e-45), (-3e38, 3e30)):
        scale, zero_point = reference.byte_code(low, high)
        assert scale > 0 and 0 <= zero_point <= 255
        ends = reference.quantize(np.array([low, 0, high], np.float32), scale, zero_point)
        assert ends[1] == zero_point
        if high - low > 1:
            decoded = (ends.astype(float) - zero_point) * scale
            np.testing.assert_allclose(decoded, [low, 0, high], atol=0.51 * scale)


def test_a_float64_model_and_bytes_as_inputs() -> None:
    wide, narrow = dense(dtype=np.float64), dense()
    wide.params[...] = narrow.params
    x = np.random.default_rng(0).integers(0, 9, (50, 23)).astype(np.uint8)
    expected = compress.quantize(narrow, x).forward(x)
    np.testing.assert_allclose(compress.quantize(wide, x).forward(x), expected, rtol=0, atol=0.05)
    np.testing.assert_array_equal(compress.quantize(narrow, x).forward(x.astype(float)), expected)


def test_it_works_like_any_model() -> None:
    model = nn.Sequential([nn.Conv2D(4, 3), nn.ReLU(), nn.Flatten(), nn.Dense(3)], input_shape=(8, 8, 1))
    x = samples(model)[..., 0]
    quantized = compress.quantize(model, x)
    assert quantized.forward(x).shape == (300, 3) and quantized.forward(x[:0]).shape == (0, 3)
    again = copy.deepcopy(quantized)
    np.testing.assert_array_equal(again.forward(x), quantized.forward(x))
    assert repr(quantized).startswith(
        "QuantizedModel([QuantizedConv2D(4, bits=8, static), ReLU(), Flatten(), Quantized"
    )
    assert (quantized.kind, compress.quantize(model, bits=(8, 1)).kind) == ("int8, static", "binary and int8, dynamic")
    with pytest.raises(ValueError, match="cannot be trained"):
        quantized.forward(x, train=True)


# ---------------------------------------------------------------------------------------------
# What is refused


class Own(nn.Activation):
    pass


def changed(model: nn.Sequential, value: float) -> nn.Sequential:
    model.layers[0].params["weight"][1, 2] = value
    return model


def wide_sums() -> nn.Sequential:
    return nn.Sequential([nn.Dense(1, init=lambda rng, shape: np.ones(shape))], input_shape=66_400)


X = samples(dense())
REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "no model": (
        lambda: compress.quantize(cast(Any, [])),
        TypeError,
        "model: expected an nn.Sequential of floats, got list",
    ),
    "a quantised model": (lambda: compress.quantize(compress.quantize(dense())), TypeError, "got QuantizedModel"),
    "a layer of one's own": (
        lambda: compress.quantize(nn.Sequential([nn.Dense(2), Own()], input_shape=2)),
        ValueError,
        r"layers\[1\]: Own cannot be quantised; expected one of Dense, Conv2D",
    ),
    "no weights": (
        lambda: compress.quantize(nn.Sequential([nn.ReLU()], input_shape=2)),
        ValueError,
        "no Dense or Conv",
    ),
    "NaN weight": (lambda: compress.quantize(changed(dense(), np.nan)), ValueError, r"layers\[0\]: .* finite weight"),
    "infinite weight": (lambda: compress.quantize(changed(dense(), np.inf)), ValueError, "finite weight"),
    "too many inputs": (lambda: compress.quantize(wide_sums()), ValueError, "66,400 inputs are too many"),
    "shape": (lambda: compress.quantize(dense(), X[:, 1:]), ValueError, r"shape \(samples, 23\).*got \(300, 22\)"),
    "empty": (lambda: compress.quantize(dense(), X[:0]), ValueError, r"at least one sample, got \(0, 23\)"),
    "a number": (lambda: compress.quantize(dense(), 3.0), ValueError, r"got \(\)"),
    "strings": (lambda: compress.quantize(dense(), X.astype(str)), TypeError, "calibration: expected real numbers"),
    "complex": (lambda: compress.quantize(dense(), X + 1j), TypeError, "expected real numbers, got complex64"),
    "NaN": (
        lambda: compress.quantize(dense(), np.where(X > 2, np.nan, X)),
        ValueError,
        "finite values, got NaN",
    ),
    "percentile": (lambda: compress.quantize(dense(), X, percentile=50), ValueError, "above 50, up to 100, got 50"),
    "percentile, dynamic": (lambda: compress.quantize(dense(), percentile=99), ValueError, "a dynamic range has none"),
    "bits": (lambda: compress.quantize(dense(), bits=4), ValueError, "expected 8, 7 or 1, .* got 4"),
    "bits of two": (lambda: compress.quantize(dense(), bits=(8, 1)), ValueError, "each of 3 layers"),
    "NaN inputs": (lambda: compress.quantize(dense(), X).forward(X * np.nan), ValueError, "x: expected finite values"),
    "infinite inputs": (lambda: compress.quantize(dense()).forward(X + np.inf), ValueError, "x: expected finite"),
    "inputs of another shape": (lambda: compress.quantize(dense()).forward(X[:, 1:]), ValueError, "x: expected shape"),
    "another weight": (
        lambda: QuantizedModel([compress.quantize(dense()).layers[0]], 9),
        ValueError,
        "part of a model",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call()


def test_the_most_inputs_are_summed_exactly() -> None:
    model = nn.Sequential([nn.Dense(3, init=lambda rng, shape: np.full(shape, -1.0))], input_shape=66_311)
    quantized = compress.quantize(model, np.array([np.full(66_311, 2.0), np.zeros(66_311)]))
    assert quantized.forward(np.full((1, 66_311), 2.0)).tolist() == [[-132_622.0] * 3]
    shifted = compress.quantize(model, -np.array([np.full(66_311, 2.0), np.zeros(66_311)]))
    assert shifted.forward(np.full((1, 66_311), -2.0)).tolist() == [[132_622.0] * 3]


def test_kernels_refuse_arrays_of_another_kind() -> None:
    core: Any = _core
    one = ((1, 1), (1, 1), (0, 0), (1, 1))
    q, out = np.zeros((2, 1, 1, 3), np.uint8), np.zeros((2, 4), np.float32)
    good: dict[str, Any] = {
        "x": q,
        "zero_point": 3,
        "weights": np.zeros((1, 2, 16, 2), np.int16),
        "start": np.zeros(16, np.int32),
        "scale": np.ones(4, np.float32),
        "bias": np.ones(4, np.float32),
        "lowest": 0.0,
        "out": out,
    }
    geometry = dict(zip(("window", "stride", "pad", "positions"), one, strict=True))
    core.quantized_product(**good, **geometry)
    frozen = np.zeros_like(out)
    frozen.flags.writeable = False
    bad = {
        "x": [q.astype(np.int8), q[:, :, :, ::2], q[0], None, q.reshape(2, 3, 1, 1)],
        "weights": [np.zeros((1, 2, 16, 2), np.int8), np.zeros((1, 1, 16, 2), np.int16)],
        "start": [np.zeros(15, np.int32), np.zeros(16, np.int64)],
        "scale": [np.ones(5, np.float32), np.ones(4)],
        "bias": [np.ones(5, np.float32), None],
        "out": [np.zeros((4, 2), np.float32), np.zeros((2, 4)), frozen, np.zeros((2, 3), np.uint8), None],
        "zero_point": [256, -1],
    }
    for name, values in bad.items():
        for value in values:
            with pytest.raises((TypeError, ValueError)):
                core.quantized_product(**{**good, name: value}, **geometry)
    memory = np.zeros(64, np.uint8)
    with pytest.raises(ValueError, match="overlaps"):
        core.quantize(memory[:32].view(np.float32), 1.0, 0, memory[8:16])
    with pytest.raises(ValueError, match="overlaps"):
        core.quantized_max_pool(
            memory[:8].reshape(1, 2, 2, 2), (2, 2), (1, 1), (0, 0), (1, 1), memory[:2][None, None, None]
        )


# ---------------------------------------------------------------------------------------------
# Files


@every_model
@pytest.mark.parametrize("bits", [8, 1])
@pytest.mark.parametrize("static", [True, False])
def test_a_file_gives_the_model_back(make: Any, bits: int, static: bool, tmp_path: Path) -> None:
    model = make()
    x = samples(model)
    quantized = compress.quantize(model, x if static else None, bits=bits)
    path = tmp_path / "small.safetensors"
    compress.save(path, quantized, extra={"labels": np.array(["a", "b"]), "n": 3})
    saved = compress.load(path)
    assert isinstance(saved.model, QuantizedModel) and saved.optimizer is None and saved.epoch == 0
    assert saved.version == sp.__version__ and saved.extra["n"] == 3 and saved.extra["labels"].tolist() == ["a", "b"]
    np.testing.assert_array_equal(saved.model.forward(x), quantized.forward(x))
    assert saved.model.kind == quantized.kind and repr(saved.model) == repr(quantized)
    compress.save(tmp_path / "again.safetensors", saved.model, extra=saved.extra)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_files_are_a_quarter_as_large_and_binary_ones_a_thirtieth(tmp_path: Path) -> None:
    model = nn.Sequential([nn.Dense(128), nn.ReLU(), nn.Dense(10)], input_shape=784)
    calibration = samples(model)
    files = {
        "float": model,
        "int8": compress.quantize(model, calibration),
        "dynamic": compress.quantize(model),
        "binary": compress.quantize(model, calibration, bits=1),
    }
    for name, each in files.items():
        compress.save(tmp_path / name, each)
    size = {name: os.path.getsize(tmp_path / name) for name in files}
    assert size["int8"] <= 0.27 * size["float"] and size["dynamic"] <= 0.27 * size["float"]
    assert size["binary"] <= 0.04 * size["float"]
    loaded = compress.load(tmp_path / "float")
    np.testing.assert_array_equal(loaded.model.params, model.params)
    assert type(loaded.model) is nn.Sequential


def test_files_that_are_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "small.safetensors")
    compress.save(path, compress.quantize(dense()))
    for load in (sp.load, lambda path: sp.load_into(path, dense())):
        with pytest.raises(ValueError, match=f"^{re.escape(path)}: a quantised model, which cannot be trained"):
            load(path)
    document = _storage.read(path)
    _storage.write(path, {**document, "quantized": 2, "version": "9.9"})
    newer = "quantised by steepest 9.9, which is newer: its format is 2, this version reads 1; upgrade"
    with pytest.raises(ValueError, match=f"^{re.escape(path)}: {newer}"):
        compress.load(path)
    broken = copy.deepcopy(document)
    del broken["architecture"]["layers"][0]["scale"]
    _storage.write(path, broken)
    with pytest.raises(ValueError, match=f"^{re.escape(path)}: "):
        compress.load(path)
    with pytest.raises(FileNotFoundError):
        compress.load(tmp_path / "absent")


def test_what_cannot_be_saved_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    compress.save(path, compress.quantize(dense()))
    before = path.read_bytes()
    bad: list[Any] = [(compress.quantize(dense()), {"f": print}), (compress.quantize(dense()), [1]), ("model", None)]
    for model, extra in bad:
        with pytest.raises(TypeError):
            compress.save(path, model, extra=extra)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["weight", "scale", "bias"])
@pytest.mark.parametrize("layer", [0, 3])
def test_a_file_with_arrays_that_do_not_fit_is_refused(name: str, layer: int, tmp_path: Path) -> None:
    path = str(tmp_path / "small.safetensors")
    compress.save(path, compress.quantize(images(), samples(images())))
    original = _storage.read(path)
    entry = original["architecture"]["layers"][layer]
    for bad in (entry[name][..., 1:], entry[name].astype(np.float64), entry[name].astype(np.int64), None):
        document = copy.deepcopy(original)
        document["architecture"]["layers"][layer][name] = bad
        _storage.write(path, document)
        with pytest.raises(ValueError, match=f"^{re.escape(path)}: "):
            compress.load(path)


# ---------------------------------------------------------------------------------------------
# The command


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    monkeypatch.chdir(tmp_path)

    def run(*args: Any, code: int = 0) -> str:
        assert cli.main(list(map(str, args))) == code
        out, err = capsys.readouterr()
        assert err.count("\n") == (code != 0), err
        return err if code else out

    return run


def test_the_command_compresses_evaluates_and_predicts(run: Any) -> None:
    run("train", "--hidden", "32", "--epochs", "3", "--out", "m.safetensors")
    wanted = json.loads(run("evaluate", "m.safetensors", "digits", "--json"))
    for options in ((), ("dynamic",), ("static", "--percentile", "99.9", "--samples", "200")):
        text = run("compress", "m.safetensors", "--out", "q.safetensors", "--quantize", *options)
        assert f"quantised      int8, {(*options, 'static')[0]}" in text
        bytes_before, bytes_after = (
            int(re.search(rf"^{name} +([\d,]+) ", text, re.M).group(1).replace(",", ""))  # type: ignore[union-attr]
            for name in ("as it was", "quantised")
        )
        assert bytes_after == os.path.getsize("q.safetensors") < 0.5 * bytes_before
        scores = json.loads(run("evaluate", "q.safetensors", "digits", "--json"))
        assert scores["part"] == "held out" and abs(scores["accuracy"] - wanted["accuracy"]) <= 0.02
        assert f"{scores['accuracy']:.2%}" in text
    assert "64-32-10, ReLU, int8, static, 3 epochs" in run("evaluate", "q.safetensors", "digits")
    assert len(run("predict", "q.safetensors", "digits").splitlines()) == 1798


def test_the_command_on_a_regression(run: Any) -> None:
    x = np.random.default_rng(0).normal(size=(200, 3))
    np.savetxt("t.csv", np.c_[x, x @ [1.0, 2.0, 3.0]], delimiter=",", header="a,b,c,y", comments="")
    run("train", "t.csv", "--hidden", "16", "--epochs", "20", "--out", "m.safetensors")
    text = run("compress", "m.safetensors", "--out", "q.safetensors", "--quantize")
    before, after = map(float, re.findall(r" ([\d.]+) +\d+ us", text))
    assert after == pytest.approx(before, rel=0.5)


def test_the_command_refuses(run: Any) -> None:
    run("train", "--hidden", "8", "--epochs", "1", "--out", "m.safetensors")
    start, quantize = ("compress", "m.safetensors", "--out"), "--quantize"
    assert "at least one way to make it smaller" in run(*start, "q.safetensors", code=2)
    assert "another name than MODEL" in run(*start, "m.safetensors", quantize, code=2)
    assert "that ends in .safetensors" in run(*start, "q.npz", quantize, code=2)
    assert "expected a file in a folder" in run(*start, "no/q.safetensors", quantize, code=2)
    assert os.listdir() == ["m.safetensors"]
    run(*start, "q.safetensors", quantize)
    for command in (("train", "--from", "q.safetensors"), ("train", "--resume", "--out", "q.safetensors")):
        assert "a quantised model, which cannot be trained" in run(*command, code=2)
    again = "compress", "q.safetensors", "--out", "r.safetensors", quantize
    assert "q.safetensors: a quantised model, which cannot be trained" in run(*again, code=2)
    assert sorted(os.listdir()) == ["m.safetensors", "q.safetensors"]


def test_every_layer_of_nn_is_quantised_kept_or_refused() -> None:
    from steepest.compress import quantization

    known = {*quantization.WEIGHTED, *quantization.KEPT, nn.MaxPool2D}
    layers = {value for value in vars(nn).values() if isinstance(value, type) and issubclass(value, Layer)}
    assert layers - known == {Layer, nn.Activation}
    assert list(itertools.chain(known)) and known <= layers


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2D(4, 3), nn.MaxPool2D(), nn.ReLU(), nn.Flatten(), nn.Dense(3)],
        [nn.Flatten(), nn.Dense(8), nn.Dropout(0.2), nn.ReLU(), nn.Dense(3)],
    ],
)
def test_a_relu_that_follows_no_product(layers: list[Layer]) -> None:
    x = np.random.default_rng(0).normal(size=(50, 8, 8, 1)).astype(np.float32)
    model = shaken(nn.Sequential(copy.deepcopy(layers), (8, 8, 1)))
    expected = model.forward(x)
    assert np.abs(compress.quantize(model, x).forward(x) - expected).max() < 0.05 * np.abs(expected).max()


def test_steepest_save_refuses_a_quantised_model(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"steepest\.compress\.save takes it"):
        sp.save(tmp_path / "model.safetensors", compress.quantize(dense()))
    assert not list(tmp_path.iterdir())
