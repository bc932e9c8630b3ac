"""The distillation loss against many digits, finite differences and its limits; `compress.distill`."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import numpy as np
import pytest
from mpmath import mpf

import steepest as sp
from steepest import compress, losses, metrics, nn
from steepest.callbacks import Callback
from steepest.train import Trainer

both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def exact(x: Any, t: Any, label: int, alpha: float, temperature: float) -> tuple[mpf, list[mpf]]:
    """The loss of a row and its gradient."""

    def log_softmax(z: list[mpf]) -> list[mpf]:
        whole = mpmath.log(mpmath.fsum(mpmath.exp(v) for v in z))
        return [v - whole for v in z]

    alpha, temperature = mpf(alpha), mpf(temperature)
    x, t = ([mpf(float(v)) for v in row] for row in (x, t))
    p, p_soft, q = log_softmax(x), *(log_softmax([v / temperature for v in z]) for z in (x, t))
    divergence = mpmath.fsum(mpmath.exp(b) * (b - a) for a, b in zip(p_soft, q, strict=True))
    gradient = [
        alpha * temperature * (mpmath.exp(b) - mpmath.exp(c)) + (1 - alpha) * (mpmath.exp(a) - (j == label))
        for j, (a, b, c) in enumerate(zip(p, p_soft, q, strict=True))
    ]
    return alpha * temperature**2 * divergence - (1 - alpha) * p[label], gradient


@both_dtypes
@pytest.mark.parametrize(("alpha", "temperature"), [(0.5, 2.0), (0.9, 8.0), (0.0, 3.0), (1.0, 0.5)])
def test_against_many_digits(dtype: Any, alpha: float, temperature: float) -> None:
    rng = np.random.default_rng(0)
    eps = float(np.finfo(dtype).eps)
    for rows, classes in ((5, 1), (5, 3), (4, 33), (3, 70)):
        x, t = (5 * rng.standard_normal((rows, classes)).astype(dtype) for _ in range(2))
        labels, w = rng.integers(0, classes, rows), rng.integers(0, 3, rows).astype(dtype)
        w[0] = 1
        loss, gradient = losses.distillation(
            x, t, labels, alpha=alpha, temperature=temperature, sample_weight=w, reduction="sum"
        )
        with mpmath.workdps(40):
            found = [exact(a, b, c, alpha, temperature) for a, b, c in zip(x, t, labels, strict=True)]
            total = mpmath.fsum(float(v) * value for v, (value, _) in zip(w, found, strict=True))
        assert loss == pytest.approx(float(total), rel=64 * eps, abs=64 * eps * (1 + temperature**2) * float(w.sum()))
        slopes = np.array([[float(v) * float(s) for s in row] for v, (_, row) in zip(w, found, strict=True)])
        np.testing.assert_allclose(gradient, slopes, rtol=64 * eps, atol=64 * eps * (1 + temperature))


def test_the_gradient_is_the_derivative_of_the_loss() -> None:
    rng = np.random.default_rng(1)
    x, t, labels = 2 * rng.standard_normal((4, 5)), 2 * rng.standard_normal((4, 5)), np.array([0, 4, 2, 2])
    options: dict[str, Any] = {"alpha": 0.7, "temperature": 3.0, "sample_weight": np.array([1, 0.5, 0, 2.0])}
    gradient = losses.distillation(x, t, labels, **options)[1]
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += 1e-5
        down[i] -= 1e-5
        slope = losses.distillation(up, t, labels, **options)[0] - losses.distillation(down, t, labels, **options)[0]
        assert gradient[i] == pytest.approx(slope / 2e-5, abs=1e-9)


@both_dtypes
def test_its_limits_are_the_other_losses(dtype: Any) -> None:
    rng = np.random.default_rng(2)
    x, t = (3 * rng.standard_normal((50, 40)).astype(dtype) for _ in range(2))
    labels = rng.integers(0, 40, 50)
    eps = float(np.finfo(dtype).eps)
    for one, other in (
        (losses.distillation(x, t, labels, alpha=0.0), losses.softmax_cross_entropy(x, labels)),
        (
            losses.distillation(x, t, labels, alpha=1.0, temperature=1.0),
            losses.kl_divergence(x, (np.exp(t) / np.exp(t).sum(1, keepdims=True)).astype(dtype)),
        ),
    ):
        assert one[0] == pytest.approx(other[0], rel=64 * eps)
        np.testing.assert_allclose(one[1], other[1], rtol=64 * eps, atol=4 * eps)
    masked = x.copy()
    masked[:, 3] = -np.inf
    with_both = t.copy()
    with_both[:, 3] = -np.inf
    labels[labels == 3] = 4
    loss, gradient = losses.distillation(masked, with_both, labels)
    assert math.isfinite(loss) and (gradient[:, 3] == 0).all() and np.isfinite(gradient).all()
    assert losses.distillation(masked, t, labels)[0] == math.inf
    loss, gradient = losses.distillation(x[:0], t[:0], labels[:0])
    assert loss == 0.0 and gradient.shape == (0, 40)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"alpha": -0.1}, ValueError, "alpha: expected a number in [0, 1]"),
        ({"alpha": math.nan}, ValueError, "alpha: expected"),
        ({"alpha": None}, TypeError, "alpha: expected a number, got NoneType"),
        ({"temperature": 0.0}, ValueError, "temperature: expected a number in [1e-30, 1e30], got 0.0"),
        ({"temperature": 1e-39}, ValueError, "[1e-30, 1e30], got 1e-39"),
        ({"temperature": 1e46}, ValueError, "[1e-30, 1e30], got 1e+46"),
        ({"temperature": math.inf}, ValueError, "temperature: expected"),
        ({"teacher_logits": np.zeros((4, 2))}, ValueError, "teacher_logits: expected shape (4, 3), got (4, 2)"),
        ({"teacher_logits": np.zeros((4, 3), np.float32)}, TypeError, "teacher_logits: expected dtype float64"),
        ({"labels": np.array([0, 1, 3, 0])}, ValueError, "labels: expected 0 to 2 for 3 classes, got 3 at position 2"),
        ({"labels": np.zeros((4, 3))}, TypeError, "labels: expected integers, got dtype float64"),
        ({"labels": [0, 1, 2, 0]}, TypeError, "labels: expected a numpy.ndarray of integers, got list"),
        ({"sample_weight": np.ones(3)}, ValueError, "sample_weight: expected shape (4,)"),
        ({"out": np.zeros((4, 2))}, ValueError, "out: expected shape (4, 3)"),
        ({"out": "logits"}, ValueError, "out: expected memory of its own, got memory that overlaps logits"),
        ({"reduction": "none"}, ValueError, "reduction: expected"),
    ],
)
def test_arguments_out_of_range(change: dict[str, Any], error: type[Exception], words: str) -> None:
    given: dict[str, Any] = {"logits": np.ones((4, 3)), "teacher_logits": np.ones((4, 3)), "labels": np.zeros(4, int)}
    given |= {"out": np.full((4, 3), 7.0), **change}
    if isinstance(given["out"], str):
        given["out"] = given[given["out"]]
    before = given["out"].copy()
    with pytest.raises(error) as caught:
        losses.distillation(**given)
    assert words in str(caught.value) and given["out"].tobytes() == before.tobytes()


# ---------------------------------------------------------------------------------------------
# distill


def blobs(n: int = 600) -> tuple[Any, Any]:
    rng = np.random.default_rng(3)
    y = rng.integers(0, 3, n)
    return (rng.standard_normal((n, 4)) + 2 * np.eye(3, 4)[y]).astype(np.float32), y


def network(units: int, seed: int = 0) -> nn.Sequential:
    return nn.Sequential([nn.Dense(units), nn.ReLU(), nn.Dense(3)], input_shape=4, seed=seed)


def test_a_teacher_may_be_a_model_a_trainer_a_function_or_its_logits() -> None:
    x, y = blobs()
    teacher = network(32)
    trained = Trainer(teacher, losses.softmax_cross_entropy, sp.Adam(teacher.param_groups(), lr=0.01))
    trained.fit(x, y, epochs=3, verbose=False)
    before = teacher.params.copy()
    weights = []
    for given in (teacher, trained, lambda batch: teacher.forward(batch).copy(), trained.predict(x)):
        student = network(4, seed=1)
        trainer = compress.distill(given, student, x, y, epochs=2, metrics=[metrics.accuracy], verbose=False)
        weights.append(student.params.tobytes())
        history = trainer.history.history
        assert history["loss"][1] < history["loss"][0] and history["accuracy"][1] > history["accuracy"][0]
    assert len(set(weights)) == 1 and teacher.params.tobytes() == before.tobytes()


def test_without_the_teachers_share_it_is_plain_training() -> None:
    """To rounding: the two losses add in other orders."""
    x, y = blobs()
    plain, student = network(4), network(4)
    options: dict[str, Any] = {"epochs": 2, "validation_split": 0.2, "seed": 5, "verbose": False}
    w = np.random.default_rng(0).random(len(x))
    one = Trainer(plain, losses.softmax_cross_entropy, sp.Adam(plain.param_groups()))
    one.fit(x, y, sample_weight=w, **options)
    other = compress.distill(np.zeros((len(x), 3)), student, x, y, alpha=0.0, sample_weight=w, **options)
    np.testing.assert_allclose(student.params, plain.params, atol=1e-5)
    for name in ("loss", "val_loss"):
        np.testing.assert_allclose(other.history.history[name], one.history.history[name], rtol=1e-4)


def test_the_student_comes_to_agree_with_the_teacher() -> None:
    x, y = blobs()
    target = 3 * np.stack([x[:, 1], x[:, 2], x[:, 0]], axis=1)  # a teacher that the labels contradict
    student = network(16)
    trainer = compress.distill(
        target, student, x, y, alpha=1.0, epochs=30, optimizer=sp.Adam(student.param_groups(), lr=0.01), verbose=False
    )
    agreement = (trainer.predict(x).argmax(1) == target.argmax(1)).mean()
    assert agreement > 0.95 > (y == target.argmax(1)).mean() + 0.3


class Never(Callback):
    def on_train_begin(self, logs: Any = None) -> None:
        raise AssertionError("training began")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"teacher": None}, TypeError, "teacher: expected a model, a function"),
        ({"teacher": np.zeros((600, 2))}, ValueError, "teacher: expected logits of shape (600, 3), got (600, 2)"),
        ({"teacher": np.zeros((600, 3), int)}, TypeError, "teacher: expected logits of real numbers, got int64"),
        ({"teacher": lambda batch: batch}, ValueError, "teacher: expected logits of shape (600, 3) for a batch"),
        ({"y": np.zeros(600)}, TypeError, "y: expected class numbers, got float64"),
        ({"y": np.full(600, 3)}, ValueError, "y: expected labels 0 to 2, got 3 to 3"),
        ({"y": np.zeros(599, int)}, ValueError, "y: expected shape (600,), got (599,)"),
        ({"alpha": 2.0}, ValueError, "alpha: expected"),
        ({"temperature": -1.0}, ValueError, "temperature: expected"),
        ({"validation_split": 0.1, "validation_data": blobs(9)}, ValueError, "validation_split: expected 0"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(
    change: dict[str, Any], error: type[Exception], words: str
) -> None:
    x, y = blobs()
    student = network(4)
    before = student.params.copy()
    given: dict[str, Any] = {"teacher": np.zeros((600, 3)), "student": student, "x": x, "y": y, **change}
    with pytest.raises(error) as caught:
        compress.distill(**given, epochs=1, callbacks=[Never()], verbose=False)
    assert words in str(caught.value) and student.params.tobytes() == before.tobytes()


@both_dtypes
def test_what_has_no_share_may_be_infinite(dtype: Any) -> None:
    x, t = np.array([[-np.inf, 1, 2]], dtype), np.array([[0, 0, 1]], dtype)
    plain, gradient = losses.softmax_cross_entropy(x, np.array([1]))
    got = losses.distillation(x, t, np.array([1]), alpha=0.0)
    assert got[0] == pytest.approx(plain) and np.allclose(got[1], gradient)
    assert losses.distillation(x, np.array([[-np.inf, 0, 1]], dtype), np.array([0]), alpha=1.0)[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_weight": np.ones(61, np.float32)}, r"sample_weight: expected shape \(60,\), got \(61,\)"),
        ({"sample_weight": np.ones(59, np.float32)}, r"sample_weight: expected shape \(60,\), got \(59,\)"),
        ({"validation_data": (np.ones((60, 2)), np.zeros(60, int))}, r"validation_data: x: expected shape"),
        ({"validation_data": (np.ones((60, 4)), np.full(60, 5))}, r"validation_data: labels: expected 0 to 1"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_training(options: Any, message: str) -> None:
    x, y = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 2
    student = nn.Sequential([nn.Dense(2)], 4)
    before = student.params.copy()
    with pytest.raises(ValueError, match=message):
        compress.distill(np.zeros((60, 2)), student, x, y, epochs=1, verbose=False, **options)
    assert np.array_equal(student.params, before)
