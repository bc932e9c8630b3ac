"""What the two estimators share."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from sklearn import get_config
from sklearn.base import BaseEstimator, _fit_context, is_classifier
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils._param_validation import Interval, Options, StrOptions
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from steepest import _core
from steepest._history import History
from steepest.nn.layer import Array, well_formed
from steepest.sklearn import _file
from steepest.sklearn._callbacks import CallbackSupportMixin, Tasks, with_callbacks
from steepest.sklearn._network import PLANS, SOLVERS, Network, Samples, initial_parameters, outputs, shifted, state_of
from steepest.sklearn._training import Training


def stochastic(estimator: Any) -> bool:
    if estimator.solver == "lbfgs":
        raise AttributeError("partial_fit is only available for stochastic optimizers. lbfgs is not stochastic.")
    return True


def input_options(X: Any) -> dict[str, Any]:
    """What `validate_data` is told of X: not to look for what is not finite where our threads found nothing."""
    dtypes = np.float64, np.float32
    is_plain = type(X) is np.ndarray and X.dtype in dtypes and well_formed(X, X.dtype)
    looks = is_plain and not get_config()["assume_finite"]
    return {
        "accept_sparse": ["csr", "csc"],
        "dtype": dtypes,
        "order": "C",
        "ensure_all_finite": not (looks and math.isfinite(_core.global_norm([X]))),
    }


class BaseMLP(CallbackSupportMixin, BaseEstimator):
    """A multi-layer perceptron; a subclass says what its targets are."""

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012 - scikit-learn's convention
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions({"identity", "logistic", "tanh", "relu"})],
        "solver": [StrOptions({"lbfgs", *SOLVERS})],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "learning_rate": [StrOptions({"constant", "invscaling", "adaptive", *PLANS}), callable],
        "learning_rate_init": [Interval(Real, 0, None, closed="neither")],
        "power_t": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "shuffle": ["boolean"],
        "random_state": ["random_state"],
        "tol": [Interval(Real, 0, None, closed="left")],
        "verbose": ["verbose"],
        "warm_start": ["boolean"],
        "momentum": [Interval(Real, 0, 1, closed="left")],
        "nesterovs_momentum": ["boolean"],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="left")],
        "beta_1": [Interval(Real, 0, 1, closed="left")],
        "beta_2": [Interval(Real, 0, 1, closed="left")],
        "epsilon": [Interval(Real, 0, None, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left"), Options(Real, {np.inf})],
        "max_fun": [Interval(Integral, 1, None, closed="left")],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "l1": [Interval(Real, 0, None, closed="left")],
        "solver_options": [dict, None],
        "callbacks": [list, tuple, None],
    }

    coefs_: list[Array]
    intercepts_: list[Array]
    loss_curve_: list[float]
    validation_loss_curve_: list[float] | None
    validation_scores_: list[float] | None
    _network: Network | dict[str, Any]

    def _keep(self, parameters: Mapping[str, Any]) -> None:
        """Sets the parameters, given the constructor's `locals()`: a subclass may have others."""
        for name, value in parameters.items():
            if name not in ("self", "__class__"):
                setattr(self, name, value)

    def _check_X_y(self, X: Any, y: Any, reset: bool, **options: Any) -> tuple[Any, Any]:
        X, y = validate_data(self, X, y, multi_output=True, reset=reset, **input_options(X), **options)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        return X, y

    def _learn_targets(self, y: Any, first: bool) -> None:
        """Learns what the targets of a fit are like, or compares them with those of the fit before."""

    def _targets(self, y: Any, dtype: np.dtype[Any]) -> Array:
        """The targets as the loss takes them: (n,) class numbers, or (n, outputs) of that dtype."""
        raise NotImplementedError

    def _last_layer(self, targets: Array) -> tuple[str, int]:
        """The last activation, and the number of outputs."""
        raise NotImplementedError

    def _class_factors(self, targets: Array) -> Array | None:
        """A factor of each sample's weight, if classes have weights."""
        return None

    @with_callbacks
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
    ) -> Self:
        """Trains on rows X and targets y; returns the estimator.

        - `X`: array or sparse matrix, (n_samples, n_features). float32 stays float32, all else becomes float64; CSR
          and CSC matrices stay sparse, with the bits of dense ones; with `dropout` they become dense batch by batch.
        - `y`: (n_samples,), or (n_samples, n_outputs) for several labels or outputs.
        - `sample_weight` (None): (n_samples,), not negative; losses are then weighted means.
        - `X_val`, `y_val`, `sample_weight_val` (None): data to validate on after each epoch, instead of the part that
          `early_stopping` would hold out.

        ValueError for what does not fit, with scikit-learn's messages, and for weights that became infinite or NaN.
        """
        if (X_val is None) != (y_val is None) or (X_val is None and sample_weight_val is not None):
            raise ValueError("X_val, y_val: expected both or none of them, and sample_weight_val only beside them")
        stochastic = self.solver != "lbfgs"
        given = Tasks(self, X, y, sample_weight)
        with self._as_it_was_if_refused():
            first = not (self.warm_start and hasattr(self, "coefs_"))
            hidden = self._hidden()
            X, y = self._check_X_y(X, y, reset=first)
            self._learn_targets(y, first)
            samples = self._samples(X, y, sample_weight)
            held_out = None
            if X_val is not None:
                try:
                    held_out = self._samples(*self._check_X_y(X_val, y_val, reset=False), sample_weight_val)
                except (TypeError, ValueError) as error:
                    raise type(error)(f"X_val, y_val, sample_weight_val: {error}") from error
                if held_out.y.shape[1:] != samples.y.shape[1:]:
                    raise ValueError(f"y_val: expected rows of shape {samples.y.shape[1:]}, got {held_out.y.shape[1:]}")
            network = self._prepare(samples, hidden, first)
            if held_out is None and self.early_stopping and stochastic:
                samples, held_out = self._split(samples)
            self._weigh_classes(samples)
            self._start(first, held_out is not None)
            training = Training(self, network, samples, held_out, given)
            if stochastic:
                network.make_optimizer(self.solver, self._options(), self._rates(training.steps))
            else:
                network.optimizer = None
            training.check_callbacks()
        with training.running():
            training.fit_epochs() if stochastic else training.fit_lbfgs()
        self._check_finite(network)
        given.close()
        return self

    @contextmanager
    def _as_it_was_if_refused(self) -> Iterator[None]:
        """A fit that is refused leaves what there was before: attributes, network, optimizer."""
        before, network = dict(self.__dict__), self.__dict__.get("_network")
        optimizer = network.optimizer if isinstance(network, Network) else None
        try:
            yield
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            if isinstance(network, Network):
                network.optimizer = optimizer
            raise

    def _fit_part(self, X: Any, y: Any, sample_weight: Any, learn: Callable[[], object] = lambda: None) -> Self:
        """One epoch; the optimizer that is there goes on. `learn` learns the classes."""
        with self._as_it_was_if_refused():
            learn()
            if self.early_stopping:
                raise ValueError("partial_fit does not support early_stopping=True")
            first = not hasattr(self, "coefs_")
            hidden = self._hidden()
            X, y = self._check_X_y(X, y, reset=first)
            samples = self._samples(X, y, sample_weight)
            network = self._prepare(samples, hidden, first)
            self._weigh_classes(samples)
            self._start(first, False)
            training = Training(self, network, samples, None, None)
            if not network.optimized_by(self.solver):
                network.make_optimizer(self.solver, self._options(), self._rates(training.steps))
            training.check_callbacks()
        with training.running(begins=not self.history_.epoch, ends=False):
            training.epoch()
        self._check_finite(network)
        return self

    def _hidden(self) -> list[int]:
        """The hidden layers' sizes, checked, as are parameters that do not go together."""
        if self.solver == "lbfgs" and (self.l1 or self.dropout):
            raise ValueError(
                "solver: 'lbfgs' needs a smooth loss that repeats; leave l1 and dropout at 0, or take another"
            )
        if self.solver == "lbfgs" and self.solver_options:
            raise ValueError(f"solver_options: 'lbfgs' takes none, got {self.solver_options!r}")
        sizes = self.hidden_layer_sizes
        sizes = list(sizes) if isinstance(sizes, Iterable) else [sizes]
        if not all(isinstance(size, Integral) for size in sizes):
            raise TypeError(f"hidden_layer_sizes: expected integers, got {sizes}")
        if any(size <= 0 for size in sizes):
            raise ValueError(f"hidden_layer_sizes must be > 0, got {sizes}.")
        return [operator.index(size) for size in sizes]

    def _samples(self, X: Any, y: Any, sample_weight: Any) -> Samples:
        """Encoded, weights checked."""
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X)
            if sample_weight.min() < 0 or not sample_weight.any():
                raise ValueError("sample_weight: expected weights >= 0, some of them above 0")
        return Samples(X, self._targets(y, X.dtype), sample_weight)

    def _prepare(self, samples: Samples, hidden: list[int], first: bool) -> Network:
        """The network, new or the one that there is."""
        last, n_outputs = self._last_layer(samples.y)
        units = [self.n_features_in_, *hidden, n_outputs]
        self._random_state = check_random_state(self.random_state)
        if first:
            parameters = initial_parameters(self._random_state, units, self.activation, samples.x.dtype)
            seed = self._random_state.randint(2**31 - 1) if self.dropout else 0
            network = Network(*parameters, self.activation, self.dropout, seed)
            self.n_outputs_, self.out_activation_, self.n_layers_ = n_outputs, last, len(units)
        else:
            before = [*(len(coef) for coef in self.coefs_), len(self.intercepts_[-1])]
            if before != units:
                raise ValueError(f"expected layers of {before} units, as in the fit to go on from, got {units}")
            if last != self.out_activation_:
                raise ValueError(
                    f"loss: the fit to go on from has {self.out_activation_!r} as last activation, this one {last!r}; "
                    "set warm_start=False to begin anew"
                )
            network = self._live_network()
        # Lists of their own: an item that is replaced is noticed.
        self._network, self.coefs_, self.intercepts_ = network, [*network.coefs], [*network.intercepts]
        return network

    def _live_network(self) -> Network:
        """The network that `coefs_` and `intercepts_` are views of; made anew if it was pickled, or they replaced."""
        kept, values = self._network, [*self.coefs_, *self.intercepts_]
        if isinstance(kept, dict):
            state = kept
        else:
            same = all(value is view for value, view in zip(values, kept.parameters, strict=True))
            if same and (kept.activation, kept.dropout) == (self.activation, self.dropout):
                return kept
            state = state_of(kept.model, kept.optimizer)
        network = Network(self.coefs_, self.intercepts_, self.activation, self.dropout, 0)
        network.restore(state)
        return network

    def _split(self, samples: Samples) -> tuple[Samples, Samples]:
        """The samples without those that early stopping holds out, and these; drawn as scikit-learn draws them."""
        rows = train_test_split(
            np.arange(len(samples)),
            random_state=self._random_state,
            test_size=self.validation_fraction,
            stratify=samples.y > 0.5 if is_classifier(self) and self.n_outputs_ == 1 else None,
        )
        if len(rows[1]) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
            )
        parts = samples.part(rows[0]), samples.part(rows[1])
        if any(part.weight is not None and not part.weight.any() for part in parts):
            raise ValueError("sample_weight: expected weights above 0 in the validation set and in the rest, got none")
        return parts

    def _weigh_classes(self, samples: Samples) -> None:
        factors = self._class_factors(samples.y)
        if factors is not None:
            samples.weight = factors if samples.weight is None else samples.weight * factors
            if not samples.weight.any():
                raise ValueError("class_weight: expected a weight above 0 for some of the samples, got none")

    def _start(self, first: bool, validated: bool) -> None:
        """The attributes that training goes on to fill."""
        if first:
            self.history_ = History()
            self.t_ = self._no_improvement_count = 0
            self.loss_, self.loss_curve_, self.best_loss_ = np.nan, [], None
            self.validation_loss_curve_ = self.validation_scores_ = self.best_validation_score_ = None
        self.n_iter_ = 0
        if validated and self.validation_scores_ is None:
            self.validation_loss_curve_, self.validation_scores_ = [], []
        stops = self.early_stopping and self.solver != "lbfgs"
        if stops and self.best_validation_score_ is None:
            self.best_loss_, self.best_validation_score_ = None, -np.inf
        elif not stops and self.best_loss_ is None:
            self.best_loss_ = np.inf

    def _options(self) -> dict[str, Any]:
        """The optimizer's options."""
        betas = {"betas": (self.beta_1, self.beta_2), "eps": self.epsilon}
        own: dict[str, dict[str, Any]] = {
            "sgd": {
                "momentum": self.momentum,
                "nesterov": self.nesterovs_momentum and self.momentum > 0,
                "lr_in_velocity": True,
            },
            "adam": {**betas, "epsilon_hat": True},
            "adamw": betas,
            "nadam": betas,
        }
        return {**own.get(self.solver, {}), **(self.solver_options or {})}

    def _rates(self, steps: int) -> Callable[[int], Any]:
        """The learning rate or schedule of an optimizer that has taken so many steps; one by name begins there."""
        if callable(self.learning_rate):
            return lambda start: self.learning_rate
        rate, plan = float(self.learning_rate_init), PLANS.get(self.learning_rate)
        if plan is None:
            return lambda start: rate
        return lambda start: shifted(plan.make(rate, steps, self.max_iter), start)

    def _follows(self, plan: str) -> bool:
        """Whether the rate changes by that rule of scikit-learn's, which its Adam ignores, and so ours."""
        return bool(self.learning_rate == plan and self.solver != "adam")

    def _check_finite(self, network: Network) -> None:
        if not np.isfinite(network.model.params).all():
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may contain large values and need to be "
                "preprocessed. Otherwise lower learning_rate_init, or clip with solver_options={'max_norm': 1.0}."
            )

    def _outputs(self, X: Any) -> Array:
        """The network's outputs, (n_samples, n_outputs), the last activation included."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, **input_options(X))
        return outputs(self.coefs_, self.intercepts_, self.activation, self.out_activation_, X)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the fitted estimator to a safetensors file, without pickle; see `load`.

        It is a checkpoint of `steepest.save`: whole or not at all, checksummed; `steepest.load` gives its model.
        All is kept that `predict`, `partial_fit` and `warm_start` need, except the callbacks. A schedule of
        `steepest.schedules` is saved as what it is, a function of one's own by its name.

        NotFittedError before `fit`; TypeError, naming it, for a parameter that is no plain data.
        """
        check_is_fitted(self)
        _file.save(path, self, self._live_network())

    @classmethod
    def load(cls, path: str | os.PathLike[str], custom: Mapping[str, Any] | None = None) -> Self:
        """Reads an estimator that `save` wrote; nothing in the file is run.

        `custom`: schedules of one's own, by name. FileNotFoundError, or ValueError naming the file, for one that is
        damaged or of another kind.
        """
        estimator: Self = _file.load(path, cls, custom)
        return estimator

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        if isinstance(network := state.get("_network"), Network):
            state["_network"] = state_of(network.model, network.optimizer)
        return state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags
