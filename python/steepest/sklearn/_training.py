"""What trains an estimator's network: epochs of batches as scikit-learn goes through them, or L-BFGS."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import scipy.optimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import r2_score
from sklearn.utils.optimize import _check_optimize_result

from steepest import _core
from steepest.callbacks import Hooks
from steepest.nn.layer import Array, Buffers
from steepest.sklearn._callbacks import Tasks
from steepest.sklearn._network import Network, Samples, SparseRows, linked, loss_of
from steepest.train import fixed_blas, train_unwatched


class Training:
    """One `fit` or `partial_fit` of an estimator: what its callbacks see as their `trainer`.

    `model`, `optimizer` (None for L-BFGS), `history`, `callbacks` and `stop_training` are a `Trainer`'s.
    """

    def __init__(
        self, estimator: Any, network: Network, samples: Samples, validation: Samples | None, tasks: Tasks | None
    ) -> None:
        self.estimator, self.network, self.samples, self.validation = estimator, network, samples, validation
        self.model, self.history = network.model, estimator.history_
        self._weights = network.weights
        for data in (samples, validation):
            if data is not None:
                data.convert(self.model.dtype)
                data.model = self.model
        self.callbacks = list(estimator.callbacks or ())
        self.stop_training = False
        self.loss = loss_of(estimator.out_activation_, estimator.n_outputs_)
        is_whole = estimator.solver == "lbfgs"
        self.batch_size = len(samples) if is_whole else _batch_size(estimator.batch_size, len(samples))
        self._tasks, self._open = tasks, False
        self._divisor: float | None = None
        self._order = np.arange(len(samples))
        self._best: Array | None = None
        self._buffer = Buffers(self.model.dtype)
        self.steps = -(-len(samples) // self.batch_size)
        epochs = len(self.history.epoch) + estimator.max_iter
        self._hooks = Hooks(self.callbacks, self, epochs=epochs, steps=self.steps)  # type: ignore[arg-type]

    @property
    def optimizer(self) -> Any:
        """The network's."""
        return self.network.optimizer

    def check_callbacks(self) -> None:
        """Refuses callbacks that cannot begin."""
        self._hooks.check()

    @contextmanager
    def running(self, *, begins: bool = True, ends: bool = True) -> Iterator[None]:
        """Around the epochs: threads of BLAS as in `Trainer`, and the callbacks' first and last hooks."""
        try:
            with fixed_blas(self.model.multiplications * self.batch_size):
                if begins:
                    self._hooks.begin()
                try:
                    yield
                except KeyboardInterrupt:
                    self.history.interrupted = True
                    warnings.warn("Training interrupted by user.", stacklevel=2)
                finally:
                    if ends:
                        self._hooks.end()
        finally:
            for callback in self.callbacks:  # a copy of them should not be one of the data, too
                vars(callback).pop("trainer", None)

    def epoch(self) -> None:
        """Goes once through the samples, in a new order if they are shuffled, and judges what came of it."""
        est = self.estimator
        self._begin()
        logs = {"lr": self.optimizer.lr}
        est.loss_ = self._pass()
        logs = {"loss": est.loss_, **logs}
        est.n_iter_ += 1
        est.t_ += len(self.samples)
        est.loss_curve_.append(est.loss_)
        if est.verbose:
            print(f"Iteration {est.n_iter_}, loss = {est.loss_:.8f}")
        self._validate(logs)
        self._count_improvement()
        if est._follows("invscaling"):
            self.optimizer.lr = est.learning_rate_init / (est.t_ + 1) ** est.power_t
        self._end(logs)
        if est._no_improvement_count > est.n_iter_no_change:
            self._stop_or_slow_down()

    def fit_epochs(self) -> None:
        """At most `max_iter` epochs; early stopping ends with the best one's parameters."""
        est = self.estimator
        self._best = self.model.params.copy() if est.early_stopping else None
        try:
            while not self.stop_training and est.n_iter_ < est.max_iter:
                self.epoch()
                if not (est.early_stopping or math.isfinite(est.loss_) or np.isfinite(self.model.params).all()):
                    return  # the estimator reports it
        finally:
            if self._best is not None:
                np.copyto(self.model.params, self._best)
        if not self.stop_training and est.learning_rate in ("constant", "invscaling", "adaptive"):
            warnings.warn(
                f"Stochastic Optimizer: Maximum iterations ({est.max_iter}) reached and the optimization hasn't "
                "converged yet.",
                ConvergenceWarning,
                stacklevel=2,
            )

    def fit_lbfgs(self) -> None:
        """SciPy's L-BFGS-B on all samples; an epoch is one of its iterations."""
        est, last = self.estimator, self.model.params.astype(np.float64)

        def iterated(intermediate_result: Any) -> None:
            np.copyto(last, intermediate_result.x)
            np.copyto(self.model.params, last, casting="same_kind")
            est.n_iter_ += 1
            est.loss_ = float(intermediate_result.fun)
            logs = {"loss": est.loss_}
            est.loss_curve_.append(logs["loss"])
            if est.best_loss_ is not None:
                est.best_loss_ = min(est.best_loss_, logs["loss"])
            if est.verbose:
                print(f"Iteration {est.n_iter_}, loss = {logs['loss']:.8f}")
            self._validate(logs)
            self._end(logs)
            if self.stop_training:
                raise StopIteration

        options = {"maxfun": est.max_fun, "maxiter": est.max_iter, "gtol": est.tol}
        try:
            result = scipy.optimize.minimize(
                self._objective, last.copy(), method="L-BFGS-B", jac=True, options=options, callback=iterated
            )
        except BaseException:  # within a line search
            np.copyto(self.model.params, last, casting="same_kind")
            raise
        np.copyto(self.model.params, result.x, casting="same_kind")
        est.loss_ = float(result.fun)
        est.n_iter_ = result.nit if self.stop_training else _check_optimize_result("lbfgs", result, est.max_iter)

    def _begin(self) -> None:
        self._open = True
        if self._tasks is not None:
            self._tasks.begin_epoch()
        self._hooks.call("on_epoch_begin", len(self.history.epoch), {})

    def _end(self, logs: dict[str, float]) -> None:
        self._open = False
        number = len(self.history.epoch)
        self.history.append(number, logs)
        self._hooks.call("on_epoch_end", number, logs)
        if self._tasks is not None and self._tasks.end_epoch():
            self.stop_training = True

    def _pass(self) -> float:
        """Trains on every batch; the mean of their losses, weighted by their rows."""
        est, samples, scale = self.estimator, self.samples, self.loss.gradient
        before, after = (self._hooks.by_name[f"on_train_batch_{name}"] for name in ("begin", "end"))
        step, gradients = self.optimizer.step, self.model.gradients()
        if est.shuffle:  # as `sklearn.utils.shuffle` does
            places = np.arange(len(samples))
            est._random_state.shuffle(places)
            self._order = self._order[places]
        run = self._compiled()
        total, done = self._train_unwatched(run)
        for start in range(done, len(samples), self.batch_size):
            batch = start // self.batch_size
            rows = slice(start, start + self.batch_size)
            for hook in before:
                hook(batch, {})
            loss, divisor = self._backpropagate(self._order[rows] if est.shuffle else rows, run)
            loss += self._penalty(divisor)
            self._penalise(divisor)
            step(gradients, scale)
            total += loss * min(self.batch_size, len(samples) - start)
            for hook in after:
                hook(batch, {"loss": loss})
        return total / len(samples)

    def _train_unwatched(self, run: _core.Backpropagation | None) -> tuple[float, int]:
        """Trains on whole batches that no callback watches: the sum of their losses times their rows, and these."""
        est, size = self.estimator, self.batch_size
        if est.l1:
            return 0.0, 0
        self._penalise(size)
        return train_unwatched(
            self,
            self._hooks,
            run,
            self._order if est.shuffle else None,
            len(self.samples) // size * size,
            size,
            self.model.gradients(),
            self.loss.gradient,
            scale=self.loss.value,
            penalty=0.5 * float(est.alpha),
            penalised=self._weights if est.alpha else None,
        )

    def _compiled(self) -> _core.Backpropagation | None:
        """Loss and gradients in one call, if that is possible."""
        if self.samples.weight is not None:
            return None
        return self.model.backpropagation(self.loss.function, self.samples.x, self.samples.y)

    def _backpropagate(self, rows: slice | Array, run: _core.Backpropagation | None) -> tuple[float, float]:
        """Fills the gradients; the mean loss, and by what the penalties are to be divided: the rows, weighted."""
        x: Array | SparseRows
        value: float | None = math.nan
        weight = None
        if run is not None:
            value, x, y = run(rows)
            if value is not None and math.isfinite(value):
                return value * self.loss.value, len(y)
        if value is not None:  # else x and y are the rows
            x, y, weight = self.samples.take(rows)
        z = self._outputs(x, train=True)
        out = self._buffer("gradient", z.shape)
        loss, gradient = self.loss.function(z, y, sample_weight=weight, out=out)
        self.model.backward(gradient)
        divisor = len(y) if weight is None else float(weight.sum(dtype=np.float64))
        return loss * self.loss.value, divisor

    def _outputs(self, x: Array | SparseRows, train: bool) -> Array:
        return self.model.forward_sparse(*x) if isinstance(x, tuple) else self.model.forward(x, train=train)

    def _penalty(self, divisor: float) -> float:
        """(alpha / 2 |W|^2 + l1 |W|_1) / divisor, W being the weights, without the biases."""
        est, weights = self.estimator, self._weights
        value = 0.0
        if est.alpha:  # by threads of ours, for those of BLAS would stay awake on their cores
            norm = _core.global_norm([weights])
            value = 0.5 * float(est.alpha) * norm * norm
        if est.l1:
            value += float(est.l1) * float(np.abs(weights).sum(dtype=np.float64))
        return value / divisor if divisor else 0.0

    def _penalise(self, divisor: float) -> None:
        """Has the optimizer add the penalties' gradients."""
        if divisor == self._divisor:
            return
        self._divisor = divisor
        group = self.optimizer.param_groups[0]
        for name, strength in ((self.network.penalty, self.estimator.alpha), ("l1", self.estimator.l1)):
            group[name] = float(strength) / divisor if divisor else 0.0

    def _objective(self, params: Array) -> tuple[float, Array]:
        """The loss and its gradient over all samples at these parameters, for L-BFGS."""
        if not self._open:
            self._begin()
        np.copyto(self.model.params, params, casting="same_kind")
        weight = self.samples.weight
        whole = len(self.samples) if weight is None else float(weight.sum(dtype=np.float64))
        total, gradient, run = 0.0, np.zeros_like(params), self._compiled()
        for rows in self.samples.chunks():
            loss, part = self._backpropagate(rows, run)
            total += loss * part / whole
            gradient += self.model.grads * (self.loss.gradient * part / whole)
        gradient[: self._weights.size] += self._weights * (float(self.estimator.alpha) / whole)
        return total + self._penalty(whole), gradient

    def _validate(self, logs: dict[str, float]) -> None:
        """Records the loss and the score on the validation data, if there are any."""
        est = self.estimator
        if self.validation is None:
            return
        loss, score = self._evaluate(self.validation)
        logs |= {"val_loss": loss, "val_score": score}
        est.validation_loss_curve_.append(loss)
        est.validation_scores_.append(score)
        if est.verbose:
            print(f"Validation score: {score:f}")

    def _evaluate(self, samples: Samples) -> tuple[float, float]:
        """The loss, without penalties, and the accuracy or R^2."""
        y, weight = samples.y, samples.weight
        z = self._buffer("validation", (len(samples), *self.model.output_shape))
        for rows in samples.chunks():
            z[rows] = self._outputs(samples.take(rows)[0], train=False)
        loss, _ = self.loss.function(z, y, sample_weight=weight)
        loss *= self.loss.value
        if self.estimator.out_activation_ == "softmax":
            return loss, float(np.average(z.argmax(axis=1) == y, weights=weight))
        if self.estimator.out_activation_ == "logistic":
            return loss, float(np.average(((z > 0) == (y > 0.5)).all(axis=1), weights=weight))
        z = linked(z, self.estimator.out_activation_)
        return loss, float(r2_score(y, z, sample_weight=weight)) if np.isfinite(z).all() else math.nan

    def _count_improvement(self) -> None:
        """Keeps the best loss, or score, and how many epochs in a row did not improve on it by `tol`."""
        est = self.estimator
        if est.early_stopping:
            score, before = est.validation_scores_[-1], est.best_validation_score_
            failed = score < before + est.tol
            if score > before:
                est.best_validation_score_, self._best = score, self.model.params.copy()
        else:
            failed = est.loss_ > est.best_loss_ - est.tol
            est.best_loss_ = min(est.best_loss_, est.loss_)
        est._no_improvement_count = est._no_improvement_count + 1 if failed else 0

    def _stop_or_slow_down(self) -> None:
        est, optimizer = self.estimator, self.optimizer
        what = "Validation score" if est.early_stopping else "Training loss"
        message = f"{what} did not improve more than tol={est.tol:f} for {est.n_iter_no_change} consecutive epochs."
        if not est._follows("adaptive"):
            self.stop_training, outcome = True, "Stopping."
        elif optimizer.lr <= 1e-6:
            self.stop_training, outcome = True, "Learning rate too small. Stopping."
        else:
            est._no_improvement_count = 0
            optimizer.lr = optimizer.lr / 5
            outcome = f"Setting learning rate to {optimizer.lr:f}"
        if est.verbose:
            print(message, outcome)


def _batch_size(asked: int | str, samples: int) -> int:
    if asked == "auto":
        return min(200, samples)
    if int(asked) > samples:
        warnings.warn(
            "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped", stacklevel=2
        )
    return min(int(asked), samples)
