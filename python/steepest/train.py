"""The training loop."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import numpy as np
from threadpoolctl import ThreadpoolController

from steepest import _core, losses
from steepest._arguments import check_integer, plain_array
from steepest._batches import (
    Arrays,
    Stream,
    class_factors,
    class_numbers,
    source,
    split_rows,
    with_validation,
)
from steepest._history import History
from steepest._lr_finder import LRFinder
from steepest._places import attach, like_params, places_of
from steepest._scoring import Metric, Scorer, link_of, named, on_probabilities
from steepest.callbacks import Callback, Hooks, ProgressBar
from steepest.nn.layer import Array, Buffers, well_formed
from steepest.nn.sequential import Sequential
from steepest.optim import Optimizer

__all__ = ["Trainer", "on_probabilities", "split_rows"]

Loss = Callable[..., tuple[float, Array]]
# Multiplications of a batch from which on BLAS threads pay: below it they gain little on idle
# cores, and on busy ones the product waits for a spinning thread, up to 30 times as long.
PARALLEL_WORK = 1 << 26


@functools.cache
def _blas() -> tuple[ThreadpoolController, int | None]:
    """The loaded BLAS libraries, and how many threads they had when this was first asked."""
    controller = ThreadpoolController()
    found = [lib["num_threads"] for lib in controller.info() if lib["user_api"] == "blas"]
    return controller, max(found, default=None)


def fixed_blas(multiplications: float, threads: int | None = None) -> AbstractContextManager[Any]:
    """BLAS on so many threads while it lasts; None: on one for batches of few multiplications, else on all it had."""
    controller, all_threads = _blas()
    threads = threads or (1 if multiplications < PARALLEL_WORK else all_threads)
    return controller.limit(limits=threads, user_api="blas")  # type: ignore[no-any-return]


def train_unwatched(
    trainer: Any,
    hooks: Hooks,
    run: _core.Backpropagation | None,
    order: Array | None,
    end: int,
    batch_size: int,
    gradients: list[Array],
    grad_scale: float = 1.0,
    **options: Any,
) -> tuple[float, int]:
    """Trains on rows before `end` in compiled code, where no callback but a progress bar watches the batches.

    Returns the sum of the batches' losses times their rows, and how many rows that were: none if it cannot be done,
    and fewer than `end` before a batch that cannot, or if `stop_training` is set. `options` go to `run.train`.
    """
    optimizer, total, done = trainer.optimizer, 0.0, 0
    watching = hooks.by_name["on_train_batch_begin"] + hooks.by_name["on_train_batch_end"]
    bars = [callback for callback in hooks.callbacks if type(callback) is ProgressBar]
    is_own = getattr(type(optimizer), "step", None) is Optimizer.step and "step" not in vars(optimizer)
    if run is None or len(watching) > len(bars) or not is_own:
        return total, done
    start = -1
    while start < done < end and not (done and trainer.stop_training):
        start = done
        done, total = run.train(order, start, end, batch_size, optimizer._core, gradients, grad_scale, total, **options)
        for bar in bars:
            bar._advance(-(-(done - start) // batch_size))
    return total, done


class Trainer:
    """Trains, evaluates and applies a model.

    - `loss`: `(outputs, targets, *, sample_weight=None, out=None) -> (float, gradient)`, a mean
      over the batch: one of `steepest.losses`, a `functools.partial` of one, or one's own. `out` is
      an array for the gradient.
    - `optimizer`: made of `model.param_groups(...)` or of `model.params`.
    - `metrics`: functions `f(y_true, y_pred)`, or a mapping of names to them; scikit-learn's fit.
      `y_pred` are decisions: class numbers where the loss is the softmax cross-entropy or targets
      are integers, 0 and 1 for binary cross-entropy, otherwise the outputs. A metric with the
      attribute `takes` "probabilities" (or a second argument called `y_proba` or `y_score`) or
      "outputs" gets those. Each is called once with all rows, for which that is kept; those of training
      are taken over the outputs before each update.
    - `nonfinite` ("raise"): a loss that is NaN or infinite is a FloatingPointError, or with "skip"
      its batch changes nothing.
    - `blas_threads` (None): threads of NumPy's matrix products in here. Results depend on it, so it
      is fixed: None is one where `model.multiplications` x rows of a batch are under 2^26, and above
      it what BLAS was set to when the process first trained.

    Targets of real numbers are converted to the model's dtype batch by batch, and so are integers
    of the outputs' shape (one-hot classes); (batch,) stands for (batch, 1). The same seeds give the
    same bits, whatever `steepest.set_num_threads` says.

    >>> import numpy as np
    >>> import steepest as sp
    >>> from steepest import nn
    >>> x = np.random.default_rng(0).normal(size=(500, 2))
    >>> y = (x[:, 0] * x[:, 1] > 0).astype(int)
    >>> model = nn.Sequential([nn.Dense(16), nn.ReLU(), nn.Dense(2)], input_shape=2)
    >>> optimizer = sp.Adam(model.param_groups(), lr=0.01)
    >>> trainer = Trainer(model, sp.losses.softmax_cross_entropy, optimizer)
    >>> history = trainer.fit(x, y, epochs=30, validation_split=0.2, verbose=False)
    >>> history.history["val_loss"][-1] < 0.2
    True
    """

    def __init__(
        self,
        model: Sequential,
        loss: Loss,
        optimizer: Optimizer,
        metrics: Mapping[str, Metric] | Iterable[Metric] = (),
        *,
        nonfinite: Literal["raise", "skip"] = "raise",
        blas_threads: int | None = None,
    ) -> None:
        if not callable(loss):
            raise TypeError(f"loss: expected a function, got {loss!r}")
        if nonfinite not in ("raise", "skip"):
            raise ValueError(f"nonfinite: expected 'raise' or 'skip', got {nonfinite!r}")
        if blas_threads is not None and blas_threads < 1:
            raise ValueError(f"blas_threads: expected None or at least 1, got {blas_threads!r}")
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.metrics = named(metrics)
        self.nonfinite = nonfinite
        self.blas_threads = blas_threads
        self.history = History()
        self.callbacks: list[Callback] = []
        self.stop_training = False
        self._class_weight: Array | None = None
        self._connect()

    def _connect(self) -> None:
        self._gradients = like_params(self.model, self.optimizer, self.model.grads)
        self._buffer = Buffers(self.model.dtype)

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in vars(self).items() if name not in ("_gradients", "_buffer")}
        return {**kept, "places": places_of(self.optimizer, self.model.params)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        attach(self.optimizer, self.optimizer.__getstate__(), vars(self).pop("places"), self.model.params)
        self._connect()

    @property
    def _ignored(self) -> int | None:
        """The label of rows that do not count, which a partial of a loss has."""
        ignored: int | None = getattr(self.loss, "keywords", {}).get("ignore_index")
        return ignored

    def fit(
        self,
        x: Any,
        y: Any = None,
        *,
        batch_size: int | None = 32,
        epochs: int = 1,
        validation_split: float = 0.0,
        validation_data: Any = None,
        sample_weight: Any = None,
        class_weight: Mapping[int, float] | Sequence[float] | Literal["balanced"] | None = None,
        shuffle: bool = True,
        seed: int = 0,
        callbacks: Iterable[Callback] = (),
        verbose: bool = True,
        initial_epoch: int = 0,
        accumulate: int = 1,
    ) -> History:
        """Trains for the epochs `initial_epoch` to `epochs` - 1 and returns their `History`.

        - `x`, `y`: arrays or memory maps of one example per row, or, without `y`, any iterable of
          batches (x, y) or (x, y, sample weights), gone through once per epoch.
        - `batch_size` (32): rows per step; 1 is stochastic, None plain gradient descent on all.
        - `validation_split` (0): the fraction of rows to hold out, drawn with the seed and, for
          classes, stratified; see `split_rows`. `validation_data`: (x, y), (x, y, sample weights)
          or an iterable of batches.
        - `sample_weight`: a weight per row, or per label where rows have several; losses are then
          weighted means. `class_weight`: a factor per class, for integer labels (those not in a
          mapping have 1), or "balanced": labels / (classes x labels of the class). Neither counts
          labels that the loss is told to ignore.
        - `shuffle` (True), `seed` (0): each epoch's order is drawn from the seed and the epoch's
          number, so training resumed at `initial_epoch` goes on as if never interrupted.
        - `callbacks`: see `steepest.callbacks`. `verbose` (True) adds a `ProgressBar`.
        - `accumulate` (1): batches per optimizer step, which gets the mean of their gradients
          weighted by their rows; an epoch's last step may have fewer.

        With `initial_epoch` the history continues `self.history`. Ctrl-C ends training and returns
        the history so far. FloatingPointError names the epoch and batch, both counted from 1, of a
        loss that is not finite. ValueError for arguments out of range or sizes that don't fit,
        TypeError for what is neither arrays nor batches.
        """
        counts = {"initial_epoch": initial_epoch, "epochs": epochs, "accumulate": accumulate}
        initial_epoch, epochs, accumulate = itertools.starmap(check_integer, counts.items())
        if not 0 <= initial_epoch <= epochs or accumulate < 1:
            raise ValueError(
                "expected 0 <= initial_epoch <= epochs and accumulate >= 1, "
                f"got {initial_epoch!r}, {epochs!r} and {accumulate!r}"
            )
        np.random.default_rng([seed, 0])  # refuses what is no seed
        data = source(x, y, sample_weight, batch_size)
        data, validation = with_validation(data, validation_split, validation_data, seed)
        classes = max(2, math.prod(self.model.output_shape))
        factors = class_factors(class_weight, data, classes, self._ignored)
        self._check_labels("y", data)
        if validation_data is not None and isinstance(validation, Arrays):
            self._check_labels("validation_data: y", validation)
            self._check_validation(validation)
        steps = len(data) if isinstance(data, Arrays) else None
        callbacks = [*callbacks, *([ProgressBar()] if verbose else [])]
        hooks = Hooks(callbacks, self, epochs=epochs, steps=steps)  # may refuse them
        hooks.check()
        before = self.callbacks, self.history
        self.callbacks, self._class_weight = callbacks, factors
        self.history, self.stop_training = self.history.before(initial_epoch), False
        with self._fixed_blas(data):
            try:
                hooks.begin()
            except BaseException:
                self.callbacks, self.history = before
                raise
            try:
                for epoch in range(initial_epoch, epochs):
                    if self.stop_training:
                        break
                    rng = np.random.default_rng([seed, epoch]) if shuffle else None
                    self._epoch(epoch, data, validation, rng, hooks, accumulate)
            except KeyboardInterrupt:
                self.history.interrupted = True
            finally:
                self._class_weight = None
                hooks.end()
        return self.history

    def evaluate(
        self, x: Any, y: Any = None, *, batch_size: int | None = 1024, sample_weight: Any = None
    ) -> dict[str, float]:
        """The loss and every metric (not weighted) on `x`, `y` as in `fit`, by name."""
        data = source(x, y, sample_weight, batch_size)
        with self._fixed_blas(data):
            return self._evaluate(data)

    def predict(self, x: Any, *, batch_size: int | None = 1024) -> Array:
        """The model's outputs, (rows, *output_shape), for rows `x`: logits, if so trained."""
        data = Arrays(plain_array("x", x), None, None, batch_size)
        outputs = np.empty((data.size, *self.model.output_shape), self.model.dtype)
        done = 0
        with self._fixed_blas(data):
            for rows, _, _ in data.batches():
                outputs[done : done + len(rows)] = self.model.forward(rows)
                done += len(rows)
        return outputs

    def find_lr(
        self,
        x: Any,
        y: Any = None,
        *,
        batch_size: int | None = 32,
        start: float = 1e-7,
        end: float = 10.0,
        steps: int = 100,
        seed: int = 0,
    ) -> LRFinder:
        """A range test of the learning rate: `steps` batches at rates that grow from start to end.

        Returns the `LRFinder` with its `suggestion` and `plot()`. Everything is put back.
        """
        finder, history = LRFinder(start, end, steps), self.history
        quiet = functools.partial(self.fit, callbacks=[finder], verbose=False)
        try:
            quiet(x, y, batch_size=batch_size, epochs=steps, seed=seed)
        except FloatingPointError:
            pass  # the rate was too high, which is what the test is to find out
        finally:
            self.history = history
        return finder

    def _check_validation(self, data: Arrays) -> None:
        """Refuses what does not fit the model by its first row, so not after an epoch."""
        try:
            y = None if data.y is None else data.y[:1]
            self._loss(data.x[:1], y, None, Scorer({}, link_of(self.loss)), train=False)
        except (TypeError, ValueError) as error:
            raise type(error)(f"validation_data: {error}") from error

    def _check_labels(self, name: str, data: Arrays | Stream) -> None:
        """Refuses labels of no class, by their rows, so not after some batches."""
        takes_labels = self.loss is losses.softmax_cross_entropy and type(self)._loss is Trainer._loss
        if not takes_labels or isinstance(data, Stream) or data.y is None:
            return
        y = self._shaped(data.y)
        if y.ndim != len(self.model.output_shape):
            return
        if y.dtype.kind == "f":
            raise TypeError(f"{name}: expected classes as integers, or a probability for each, got {y.dtype} {y.shape}")
        classes = self.model.output_shape[-1]
        if y.dtype.kind in "iu" and not 0 <= y.min() <= y.max() < classes:
            place = int(np.argmax((y < 0) | (y >= classes)))
            found = f"{y.flat[place]} in row {place * len(y) // y.size}"
            raise ValueError(f"{name}: expected 0 to {classes - 1} for {classes} classes, got {found}")

    def _fixed_blas(self, data: Arrays | Stream) -> AbstractContextManager[Any]:
        return fixed_blas(self.model.multiplications * data.batch_size, self.blas_threads)

    def _epoch(
        self,
        epoch: int,
        data: Arrays | Stream,
        validation: Arrays | Stream | None,
        rng: np.random.Generator | None,
        hooks: Hooks,
        accumulate: int,
    ) -> None:
        hooks.call("on_epoch_begin", epoch, {})
        logs = {"lr": self.optimizer.lr}
        logs = self._train(epoch, data, rng, hooks, accumulate) | logs
        if validation is not None:
            scores = self._evaluate(validation)
            logs |= {f"val_{name}": value for name, value in scores.items()}
        self.history.append(epoch, logs)
        hooks.call("on_epoch_end", epoch, logs)

    def _train(
        self,
        epoch: int,
        data: Arrays | Stream,
        rng: np.random.Generator | None,
        hooks: Hooks,
        accumulate: int,
    ) -> dict[str, float]:
        before, after = hooks.by_name["on_train_batch_begin"], hooks.by_name["on_train_batch_end"]
        step, gradients = self.optimizer.step, self._gradients
        pending = _Accumulator(self.model.grads) if accumulate > 1 else None
        scorer = Scorer(self.metrics, link_of(self.loss))
        order, run = data.order(rng), self._compiled(data)
        total, done = 0.0, 0
        if isinstance(data, Arrays) and accumulate == 1:
            observe = scorer.add if self.metrics else None
            total, done = train_unwatched(
                self, hooks, run, order, data.size, data.batch_size, gradients, observe=observe
            )
        rows = float(done)
        learn = self._learner(data, scorer, run)
        parts: Iterator[Any] = iter(()) if done and self.stop_training else data.parts(order, done)
        for batch, part in enumerate(parts, int(done // data.batch_size)):
            for hook in before:
                hook(batch, {})
            loss, size = learn(part)
            if math.isfinite(loss):
                total += loss * size
                rows += size
                if pending is None:
                    step(gradients)
                elif pending.add(size) == accumulate:
                    step(gradients, pending.release())
            elif self.nonfinite == "raise":
                where = f"the loss is {loss} in epoch {epoch + 1}, batch {batch + 1}"
                x, *_ = data.take(part)
                if x.dtype.kind == "f" and not np.isfinite(x).all():
                    raise FloatingPointError(f"{where}, whose x holds NaN or infinity")
                raise FloatingPointError(
                    f"{where}; lower the learning rate, clip with max_norm, or pass nonfinite='skip'"
                )
            for hook in after:
                hook(batch, {"loss": loss})
            if self.stop_training:
                break
        if pending is not None and pending.count:
            step(gradients, pending.release())
        return {"loss": total / rows if rows else math.nan, **scorer.result()}

    def _compiled(self, data: Arrays | Stream) -> _core.Backpropagation | None:
        """Loss and gradients of some rows in one call, where the model allows it and nothing is weighted."""
        if type(self)._loss is not Trainer._loss or isinstance(data, Stream):
            return None
        if data.y is None or data.weight is not None or self._class_weight is not None:
            return None
        return self.model.backpropagation(self.loss, data.x, self._shaped(data.y))

    def _learner(
        self, data: Arrays | Stream, scorer: Scorer, run: _core.Backpropagation | None
    ) -> Callable[[Any], tuple[float, float]]:
        """`_loss` of a part of the data, compiled where that is possible."""
        loss = self.loss

        def learn(part: Any) -> tuple[float, float]:
            return self._loss(*data.take(part), scorer, train=True)

        def learn_compiled(rows: Any) -> tuple[float, float]:
            if self.loss is not loss:  # a callback replaced it
                return learn(rows)
            value, outputs, targets = run(rows)  # type: ignore[misc]
            if value is None:
                return self._loss(outputs, targets, None, scorer, train=True)
            scorer.add(outputs, targets)
            return value, len(outputs)

        return learn if run is None else learn_compiled

    def _loss(
        self, x: Array, y: Array | None, weight: Array | None, scorer: Scorer, train: bool
    ) -> tuple[float, float]:
        """The batch's loss and its weight in a mean; fills the gradients if training."""
        if y is None:
            raise ValueError("y: expected targets, got None")
        outputs = self.model.forward(x, train)
        targets = self._targets(y)
        scorer.add(outputs, targets)
        if weight is not None or (self._class_weight is not None and train):
            weight = self._weights(y, weight, train)
        out = self._buffer("gradient", outputs.shape)
        loss, gradient = self.loss(outputs, targets, sample_weight=weight, out=out)
        if train and math.isfinite(loss):
            self.model.backward(gradient)
        if self._ignored is not None and targets.dtype.kind in "iu":
            counts = targets != self._ignored
            return loss, float(np.count_nonzero(counts) if weight is None else weight[counts].sum(dtype=np.float64))
        return loss, len(x) if weight is None else float(weight.sum(dtype=np.float64))

    def _shaped(self, y: Array) -> Array:
        """Targets with the axes of the outputs where they lack the last; booleans for classes as numbers."""
        shape = self.model.output_shape
        if y.ndim == 1 and shape == (1,):
            return y[:, None]
        return y.view(np.uint8) if y.ndim == len(shape) and y.dtype.kind == "b" else y

    def _targets(self, y: Array) -> Array:
        """Class numbers as they are; anything else in the model's dtype."""
        y = self._shaped(y)
        is_classes = y.ndim == len(self.model.output_shape) and y.dtype.kind in "iu"
        if well_formed(y, y.dtype if is_classes else self.model.dtype):
            return y
        if is_classes:
            return y.astype(y.dtype.newbyteorder("="))
        if y.dtype.kind not in "biuf":
            raise TypeError(f"y: expected numbers, got {y.dtype}; encode classes as 0, 1, ...")
        targets = self._buffer("targets", y.shape)
        np.copyto(targets, y, casting="same_kind")
        return targets

    def _weights(self, y: Array, weight: Array | None, train: bool) -> Array:
        """A weight per row, or per label where a row has several."""
        is_sequence = y.ndim == len(self.model.output_shape) > 1 and y.dtype.kind in "iu"
        shape = y.shape if is_sequence else y.shape[:1]
        weights = self._buffer("weights", shape)
        if weight is None:
            weights.fill(1)
        elif weight.shape in (shape, shape[:1]) and weight.dtype.kind in "biuf":
            np.copyto(weights.T, weight.T)
        else:
            raise ValueError(f"sample_weight: expected numbers of shape {shape}, got {weight.dtype} {weight.shape}")
        if self._class_weight is not None and train:
            labels = class_numbers(y, len(self._class_weight), self._ignored)
            weights *= self._class_weight[labels].reshape(shape)
        return weights

    def _evaluate(self, data: Arrays | Stream) -> dict[str, float]:
        scorer = Scorer(self.metrics, link_of(self.loss))
        total = rows = 0.0
        for x, y, weight in data.batches():
            loss, size = self._loss(x, y, weight, scorer, train=False)
            total += loss * size
            rows += size
        return {"loss": total / rows if rows else math.nan, **scorer.result()}


class _Accumulator:
    """Sums the gradients of several batches, each weighted by its rows."""

    def __init__(self, grads: Array) -> None:
        self._grads, self._sum = grads, np.zeros_like(grads)
        self._weight, self.count = 0.0, 0

    def add(self, weight: float) -> int:
        """Adds what is in the gradients now; returns how many batches that makes."""
        np.multiply(self._grads, weight, out=self._grads)
        np.add(self._sum, self._grads, out=self._sum)
        self._weight += weight
        self.count += 1
        return self.count

    def release(self) -> float:
        """Puts the sum into the gradients and returns the scale that makes it a mean."""
        np.copyto(self._grads, self._sum)
        self._sum.fill(0)
        scale = 1 / self._weight if self._weight else 1.0
        self._weight, self.count = 0.0, 0
        return scale
