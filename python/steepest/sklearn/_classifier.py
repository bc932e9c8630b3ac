"""The classifier."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import ClassifierMixin, _fit_context
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import column_or_1d
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import _check_partial_fit_first_call, type_of_target, unique_labels

from steepest.nn.layer import Array
from steepest.sklearn._base import BaseMLP, stochastic


class MLPClassifier(ClassifierMixin, BaseMLP):
    """scikit-learn's `MLPClassifier`, trained by steepest: for two classes, several, or several labels at a time.

    h_0 = x;  h_i = f(h_(i-1) W_i + b_i), f being the `activation`; the probabilities are the softmax of what the last
    layer makes of them, without f, or for two classes and for labels its sigmoid. The loss is the mean cross-entropy,
    summed over the labels, plus (alpha / 2 |W|^2 + l1 |W|_1) / n: see `steepest.sklearn` for the parameters.

    - `class_weight` (None): a factor of the samples' weights per class, {class: factor}, or "balanced":
      n_samples / (n_classes * samples of the class); for labels a list of mappings, one for each. Validation data
      are not weighted.

    `classes_`: the classes, in the order of `predict_proba`'s columns.

    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> rate = {"learning_rate": "one-cycle", "learning_rate_init": 0.02}
    >>> clf = MLPClassifier((64,), solver="adamw", **rate, max_iter=15, random_state=0)
    >>> clf.fit(X[:1200] / 16, y[:1200]).score(X[1200:] / 16, y[1200:]) > 0.9
    True
    """

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012 - scikit-learn's convention
        **BaseMLP._parameter_constraints,
        "class_weight": [dict, list, StrOptions({"balanced"}), None],
    }
    loss = "log_loss"

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: str = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: Any = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        dropout: float = 0.0,
        l1: float = 0.0,
        class_weight: Any = None,
        solver_options: dict[str, Any] | None = None,
        callbacks: Any = None,
    ) -> None:
        self._keep(locals())

    def _learn_targets(self, y: Any, first: bool) -> None:
        """Learns the classes, or compares them with those of the fit before."""
        if first:
            self._label_binarizer = LabelBinarizer().fit(y)
            self.classes_ = self._label_binarizer.classes_
            return
        classes = unique_labels(y)
        if set(classes) != set(self.classes_):
            raise ValueError(
                "warm_start can only be used where `y` has the same classes as in the previous call to fit. Previously "
                f"got {self.classes_}, `y` has {classes}"
            )

    def _targets(self, y: Any, dtype: np.dtype[Any]) -> Array:
        """Class numbers, (n,), or for two classes or labels 0 and 1, (n, outputs)."""
        unknown = np.setdiff1d(unique_labels(y), self.classes_)
        if len(unknown):
            raise ValueError(
                f"`y` has classes not in `self.classes_`. `self.classes_` has {self.classes_}, `y` also {unknown}."
            )
        if self._label_binarizer.y_type_ == "multilabel-indicator" and y.shape[1:] != (len(self.classes_),):
            raise ValueError(f"y: expected {len(self.classes_)} labels, 0 or 1, in each row, got shape {y.shape}")
        if self._label_binarizer.y_type_ == "multiclass":
            return np.asarray(np.searchsorted(self.classes_, column_or_1d(y)))  # classes_ are sorted
        return np.asarray(self._label_binarizer.transform(y), dtype)

    def _last_layer(self, targets: Array) -> tuple[str, int]:
        if targets.ndim == 1:
            return "softmax", len(self.classes_)
        return "logistic", targets.shape[1]

    def _class_factors(self, targets: Array) -> Array | None:
        if self.class_weight is None:
            return None
        several, factors = self._label_binarizer.y_type_ == "multilabel-indicator", np.ones(len(targets))
        numbers = targets.reshape(len(targets), -1).astype(np.intp)
        if isinstance(self.class_weight, str):
            labels = targets if several else self.classes_[numbers[:, 0]]
            return np.asarray(compute_sample_weight(self.class_weight, labels))
        given = self.class_weight if several else [self.class_weight]
        if len(given) != numbers.shape[1]:
            raise ValueError(f"class_weight: expected a mapping for each of {numbers.shape[1]} labels, got {given!r}")
        classes = np.arange(2) if several else self.classes_
        for column, weights in zip(numbers.T, given, strict=True):
            factors *= compute_class_weight(weights, classes=classes, y=classes)[column]
        return factors

    @available_if(stochastic)
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> Self:
        """Trains for one epoch over these rows; the optimizer goes on from its state, also after pickling.

        `classes`: all there are, needed by the first call. The callbacks' `on_train_begin` is called by the first call
        alone and `on_train_end` never, as more may follow. `class_weight="balanced"` is refused: the shares of the
        classes are not known.
        """
        if isinstance(self.class_weight, str):
            raise ValueError(f"class_weight: {self.class_weight!r} needs all of the data; pass partial_fit numbers")

        def learn() -> None:
            if _check_partial_fit_first_call(self, classes):
                labels = type_of_target(y).startswith("multilabel")
                self._label_binarizer = LabelBinarizer().fit(y if labels else classes)

        return self._fit_part(X, y, sample_weight, learn)

    def predict(self, X: Any) -> Array:
        """The most probable class of each row, (n_samples,), or its labels as 0 and 1, (n_samples, n_outputs)."""
        p = self._outputs(X)
        labels: Array = self._label_binarizer.inverse_transform(p.ravel() if self.n_outputs_ == 1 else p)
        return labels

    def predict_proba(self, X: Any) -> Array:
        """The probabilities of the classes, in the order of `classes_`, or of the labels, (n_samples, n_classes)."""
        p = self._outputs(X)
        return np.hstack([1 - p, p]) if self.n_outputs_ == 1 else p

    def predict_log_proba(self, X: Any) -> Array:
        """The logarithms of `predict_proba(X)`."""
        p = self.predict_proba(X)
        return np.log(p, out=p)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
