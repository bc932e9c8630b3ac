"""Knowledge distillation: a small model learns from a large one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from steepest import losses
from steepest._arguments import plain_array
from steepest._batches import class_numbers, split_rows
from steepest._scoring import Metric, Scorer
from steepest.callbacks import Callback
from steepest.nn.layer import Array
from steepest.nn.sequential import Sequential
from steepest.optim import Adam, Optimizer
from steepest.train import Trainer

__all__ = ["distill"]


class _Distiller(Trainer):
    """A trainer whose training targets are numbers of rows: of labels and of the teacher's logits.

    Validation has labels as usual, and the plain cross-entropy.
    """

    labels: Array
    teacher_logits: Array
    alpha: float
    temperature: float

    def _loss(
        self, x: Array, y: Array | None, weight: Array | None, scorer: Scorer, train: bool
    ) -> tuple[float, float]:
        if not train:
            return super()._loss(x, y, weight, scorer, train)
        outputs = self.model.forward(x, train)
        labels, teacher_logits = self.labels[y], self.teacher_logits[y]
        scorer.add(outputs, labels)
        if weight is not None:
            weight = self._weights(labels, weight, train)
        out = self._buffer("gradient", outputs.shape)
        loss, gradient = losses.distillation(
            outputs,
            teacher_logits,
            labels,
            alpha=self.alpha,
            temperature=self.temperature,
            sample_weight=weight,
            out=out,
        )
        if math.isfinite(loss):
            self.model.backward(gradient)
        return loss, len(x) if weight is None else float(weight.sum(dtype=np.float64))


def _logits_of(teacher: Any, student: Sequential, x: Array) -> Array:
    """The teacher's logits for all rows, from the model, a function of a batch, or as they are given."""
    if isinstance(teacher, Sequential):
        forward: Callable[[Array], Any] = teacher.forward
    elif callable(getattr(teacher, "predict", None)):
        forward = teacher.predict
    elif callable(teacher):
        forward = teacher
    elif isinstance(teacher, np.ndarray):
        forward = None  # type: ignore[assignment]
    else:
        raise TypeError(
            f"teacher: expected a model, a function of a batch or an array of logits, got {type(teacher).__name__}"
        )
    shape = (len(x), *student.output_shape)
    if forward is None:
        if teacher.dtype.kind != "f":
            raise TypeError(f"teacher: expected logits of real numbers, got {teacher.dtype}")
        if teacher.shape != shape:
            raise ValueError(f"teacher: expected logits of shape {shape}, got {teacher.shape}")
        return np.ascontiguousarray(teacher, student.dtype)
    logits = np.empty(shape, student.dtype)
    for start in range(0, len(x), 1024):
        part = np.asarray(forward(x[start : start + 1024]))
        expected = logits[start : start + 1024].shape
        if part.shape != expected:
            raise ValueError(f"teacher: expected logits of shape {expected} for a batch, got {part.shape}")
        logits[start : start + 1024] = part
    return logits


def distill(
    teacher: Any,
    student: Sequential,
    x: Any,
    y: Any,
    *,
    alpha: float = 0.5,
    temperature: float = 2.0,
    optimizer: Optimizer | None = None,
    metrics: Mapping[str, Metric] | Iterable[Metric] = (),
    batch_size: int | None = 32,
    epochs: int = 10,
    validation_split: float = 0.0,
    validation_data: Any = None,
    sample_weight: Any = None,
    seed: int = 0,
    callbacks: Iterable[Callback] = (),
    verbose: bool = True,
) -> Trainer:
    """Trains `student` on labels and on what `teacher` says; returns the `Trainer` that did it.

    The loss is `losses.distillation`: alpha T^2 KL(teacher || student) + (1 - alpha) cross-entropy.

    - `teacher`: a trained model (or anything with `predict`), a function of a batch that gives its
      logits, or the logits of all rows, (rows, classes). They are computed once, before training,
      so augmented or random inputs have no place here.
    - `x`, `y`: an array of one example per row, and class numbers.
    - `alpha` (0.5): the teacher's share, in [0, 1]. `temperature` (2): softens both distributions.
    - `optimizer` (Adam at 0.001): made of `student.param_groups()`.
    - The others: as in `Trainer` and `Trainer.fit`. Validation scores the labels alone, by the
      plain cross-entropy; `history.history["loss"]` is the distillation loss.

    The trainer's `history`, `evaluate` and `predict` are as usual. ValueError for shapes or numbers that
    don't fit, TypeError for what is none of these, before the student changes.

    >>> import numpy as np
    >>> import steepest as sp
    >>> from steepest import compress, metrics, nn
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(400, 2)).astype(np.float32)
    >>> y = (x[:, 0] * x[:, 1] > 0).astype(int)
    >>> teacher = lambda batch: 4 * np.stack([-batch[:, 0] * batch[:, 1], batch[:, 0] * batch[:, 1]], axis=1)
    >>> student = nn.Sequential([nn.Dense(8), nn.ReLU(), nn.Dense(2)], input_shape=2)
    >>> trainer = compress.distill(
    ...     teacher,
    ...     student,
    ...     x,
    ...     y,
    ...     alpha=0.9,
    ...     epochs=20,
    ...     optimizer=sp.Adam(student.param_groups(), lr=0.01),
    ...     metrics=[sp.metrics.accuracy],
    ...     verbose=False,
    ... )
    >>> trainer.evaluate(x, y)["accuracy"] > 0.9
    True
    """
    x, labels = plain_array("x", x), plain_array("y", y)
    if len(student.output_shape) != 1:
        raise ValueError(f"student: expected an output for each class, got shape {student.output_shape}")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"y: expected class numbers, got {labels.dtype}")
    if labels.shape != (len(x),):
        raise ValueError(f"y: expected shape {(len(x),)}, got {labels.shape}")
    class_numbers(labels, student.output_shape[0])
    one = np.zeros((1, 1))
    losses.distillation(one, one, np.zeros(1, int), alpha=alpha, temperature=temperature)  # refuses bad options now
    weight = None if sample_weight is None else plain_array("sample_weight", sample_weight)
    if weight is not None and weight.shape != labels.shape:
        raise ValueError(f"sample_weight: expected shape {labels.shape}, got {weight.shape}")
    rows = np.arange(len(x))
    if validation_split:
        if validation_data is not None:
            raise ValueError("validation_split: expected 0 with validation_data")
        rows, held_out = split_rows(labels, validation_split, seed)
        validation_data = (x[held_out], labels[held_out], None if weight is None else weight[held_out])
    distiller = _Distiller(student, losses.softmax_cross_entropy, optimizer or Adam(student.param_groups()), metrics)
    distiller.labels, distiller.alpha, distiller.temperature = labels, alpha, temperature
    distiller.teacher_logits = _logits_of(teacher, student, x)
    distiller.fit(
        x if len(rows) == len(x) else x[rows],
        rows,
        batch_size=batch_size,
        epochs=epochs,
        validation_data=validation_data,
        sample_weight=weight if weight is None else weight[rows],
        seed=seed,
        callbacks=callbacks,
        verbose=verbose,
    )
    return distiller
