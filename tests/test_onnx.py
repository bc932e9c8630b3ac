"""What is exported answers in onnxruntime as the model does here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

import steepest as sp
from steepest import cli, compress, datasets, nn
from steepest.train import Trainer

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
from steepest.onnx import LAYERS, export_onnx  # noqa: E402

Array = NDArray[Any]


def answers(exported: Any, x: Array) -> dict[str, Array]:
    content = exported if isinstance(exported, str) else exported.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"x": x}), strict=True))


def assert_agree(got: Array, expected: Array, tolerance: float = 1e-5) -> None:
    """Within the tolerance of the largest, and the same class unless tied within that."""
    bound = tolerance * np.abs(expected).max()
    assert np.abs(got - expected).max() <= bound
    chosen = np.take_along_axis(expected, got.argmax(-1)[..., None], -1)[..., 0]
    assert (chosen >= expected.max(-1) - 2 * bound).all()


def images(n: int, *shape: int) -> Array:
    return np.random.default_rng(0).standard_normal((n, *shape), np.float32)


def network(padding: Any, stride: int, dtype: Any) -> nn.Sequential:
    """Every layer."""
    return nn.Sequential(
        [
            nn.Reshape((17, 14, 2)),
            nn.Conv2D(5, 3, stride=stride, padding=padding),
            nn.LeakyReLU(0.2),
            nn.MaxPool2D((2, 3), stride=(2, 1), padding=padding),
            nn.Conv2D(4, (2, 3), padding=padding, bias=False),
            nn.Tanh(),
            nn.AvgPool2D((2, 1), padding=padding),
            nn.Dropout(0.3),
            nn.Flatten(),
            nn.Dense(12, bias=False),
            nn.ReLU(),
            nn.Dense(7),
            nn.Sigmoid(),
            nn.Dense(3),
        ],
        17 * 14 * 2,
        dtype=dtype,
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_every_layer_gives_what_it_gives_here(padding: str, stride: int, dtype: Any) -> None:
    model = network(padding, stride, dtype)
    x = images(9, 17 * 14 * 2)
    assert_agree(answers(export_onnx(model), x)["logits"], model.forward(x.astype(dtype)))
    assert {type(layer) for layer in model.layers} == {
        kind for kind in LAYERS if kind.__module__.startswith("steepest.nn")
    }


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_quantised_models_are_exported_as_integers(padding: Any, static: bool) -> None:
    layers = [nn.Conv2D(5, 3, stride=2, padding=padding), nn.ReLU(), nn.MaxPool2D(2, padding=padding), nn.Conv2D(4, 2)]
    layers += [nn.Tanh(), nn.Flatten(), nn.Dense(7), nn.ReLU(), nn.Dense(3)]
    x = images(50, 17, 14, 2)
    model = compress.quantize(nn.Sequential(layers, (17, 14, 2)), x if static else None, bits=7)
    exported = export_onnx(model)
    assert_agree(answers(exported, x)["logits"], model.forward(x), 2e-2 if static else 1e-5)  # static: biases in int32
    kinds = {node.op_type for node in exported.graph.node}
    assert kinds >= ({"QuantizeLinear", "DequantizeLinear"} if static else {"ConvInteger", "MatMulInteger"})
    weights = [tensor for tensor in exported.graph.initializer if tensor.data_type == 3]
    assert len(weights) == (8 if static else 4)  # with zero points


def test_quantised_digits_agree_in_999_of_1000() -> None:
    x, y = datasets.load_digits()
    x = x.reshape(-1, 64)
    model = nn.Sequential([nn.Dense(64), nn.ReLU(), nn.Dense(10)], 64)
    trainer = Trainer(model, sp.losses.softmax_cross_entropy, sp.AdamW(model.param_groups(), lr=3e-3))
    trainer.fit(x, y, epochs=5, verbose=False)
    for calibration in (x[:500], None):
        small = compress.quantize(model, calibration, bits=7)
        here = small.forward(np.ascontiguousarray(x)).argmax(-1)
        there = answers(export_onnx(small), x)["logits"].argmax(-1)
        assert np.mean(here == there) >= 0.999


def test_scaling_labels_and_probabilities_are_inside() -> None:
    model = nn.Sequential([nn.Dense(3)], 4)
    mean, deviation = np.array([1.0, 2, 3, 4]), np.array([2.0, 1, np.inf, 3])
    x = np.random.default_rng(0).normal(size=(20, 2, 2)) * 5
    exported = export_onnx(model, input_shape=(2, 2), scaling=(mean, deviation), labels=["ash", "fir", "oak"])
    got = answers(exported, x)
    expected = model.forward(((x.reshape(20, 4) - mean) / deviation).astype(np.float32))
    assert_agree(got["logits"], expected)
    assert got["label"].tolist() == [["ash", "fir", "oak"][i] for i in got["logits"].argmax(-1)]
    e = np.exp(expected - expected.max(-1, keepdims=True))
    np.testing.assert_allclose(got["probabilities"], e / e.sum(-1, keepdims=True), rtol=1e-5)
    assert json.loads({p.key: p.value for p in exported.metadata_props}["labels"]) == ["ash", "fir", "oak"]
    numbers = answers(export_onnx(model, labels=[3, 5, 8], scaling=(2.0, 4.0)), images(6, 4))
    assert set(numbers["label"].tolist()) <= {3, 5, 8} and numbers["label"].dtype == np.int64


@pytest.mark.parametrize("name", ["iris", "diabetes"])
def test_the_command_exports_what_predict_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = getattr(pytest.importorskip("sklearn.datasets"), f"load_{name}")()
    y = data.target_names[data.target] if hasattr(data, "target_names") else data.target
    monkeypatch.chdir(tmp_path)
    Path("table.csv").write_text(
        "\n".join([",".join(map(str, (*x, t))) for x, t in zip(data.data.tolist(), y, strict=True)])
    )
    assert cli.main(["train", "table.csv", "--epochs", "3", "--hidden", "8", "--out", "model.safetensors"]) == 0
    assert cli.main(["export", "model.safetensors", "model.onnx"]) == 0
    assert cli.main(["predict", "model.safetensors", "table.csv", "--out", "predictions.csv"]) == 0
    assert f"x (float64, batch x {data.data.shape[1]}) -> " in capsys.readouterr().out
    first = [line.split(",")[0] for line in Path("predictions.csv").read_text().splitlines()[1:]]
    got = answers("model.onnx", data.data)
    if name == "iris":
        assert got["label"].tolist() == first
    else:
        np.testing.assert_allclose(got["value"], np.array(first, float), rtol=1e-5)


class Own(nn.Layer):
    """Nobody else's."""


def test_what_cannot_be_exported_is_refused_and_nothing_written(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    dense = nn.Sequential([nn.Dense(3)], 4)
    for error, message, call in (
        (
            ValueError,
            r"layers\[1\]: Own has no counterpart",
            lambda: export_onnx(nn.Sequential([nn.Dense(2), Own()], 3), path),
        ),
        (TypeError, "model: expected an nn.Sequential", lambda: export_onnx(cast("Any", "model"), path)),
        (ValueError, "labels: expected one for each output", lambda: export_onnx(dense, path, labels=["a", "b"])),
        (ValueError, "input_shape: expected as many values", lambda: export_onnx(dense, path, input_shape=(3,))),
        (OSError, "nowhere", lambda: export_onnx(dense, tmp_path / "nowhere" / "model.onnx")),
    ):
        with pytest.raises(error, match=message):
            call()  # type: ignore[no-untyped-call]
    assert list(tmp_path.iterdir()) == []


def test_the_command_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model.safetensors"
    assert cli.main(["export", str(model), str(tmp_path / "model.onnx")]) == 2
    assert "No such file" in capsys.readouterr().err
    assert cli.main(["export", str(model), str(tmp_path / "model.txt")]) == 2
    assert "expected a name that ends in .onnx" in capsys.readouterr().err
    for name in ("steepest.onnx", "onnx"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert cli.main(["export", str(model), str(tmp_path / "model.onnx")]) == 2
    assert 'pip install "steepest[onnx]"' in capsys.readouterr().err


@pytest.mark.parametrize(("size", "bias", "bits"), [(1e-7, 0.3, 7), (1e-5, 10.0, 7), (0.0, 0.3, 7), (0.0, 0.3, 1)])
def test_biases_of_small_filters_are_kept(size: float, bias: float, bits: int) -> None:
    x = np.random.default_rng(0).normal(size=(20, 4, 4, 1)).astype(np.float32)
    model = nn.Sequential([nn.Conv2D(2, 2)], (4, 4, 1))
    weight = model.layers[0].params["weight"]
    weight[..., 0] *= size / np.abs(weight[..., 0]).max()
    model.layers[0].params["bias"][:] = bias, 0.7
    small = compress.quantize(model, x, bits=bits)
    assert_agree(answers(export_onnx(small), x)["logits"], small.forward(x))


@pytest.mark.parametrize(
    "labels", [[0.5, 1.5, 2.5], np.array([1, 2, 2**64 - 1], np.uint64), [b"a", b"b", b"c"], np.array(["a", 1, None])]
)
def test_labels_that_it_cannot_write_are_refused(labels: Any) -> None:
    with pytest.raises(ValueError, match=r"^labels: expected strings, or integers of 64 bits"):
        export_onnx(nn.Sequential([nn.Dense(3)], 2), labels=labels)


def test_booleans_become_strings() -> None:
    exported = export_onnx(nn.Sequential([nn.Dense(2)], 2, seed=1), labels=[False, True])
    assert set(answers(exported, np.eye(2, dtype=np.float32))["label"]) <= {"False", "True"}


def test_unscaling_of_several_outputs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^unscaling: expected None for outputs of shape \(3,\)"):
        export_onnx(nn.Sequential([nn.Dense(3)], 2), unscaling=(0.0, 1.0))
