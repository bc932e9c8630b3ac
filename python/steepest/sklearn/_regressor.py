"""The regressor."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import RegressorMixin, _fit_context
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.metaestimators import available_if

from steepest.nn.layer import Array
from steepest.sklearn._base import BaseMLP, stochastic


class MLPRegressor(RegressorMixin, BaseMLP):
    """scikit-learn's `MLPRegressor`, trained by steepest: for one output or several.

    h_0 = x;  h_i = f(h_(i-1) W_i + b_i), f being the `activation`; the prediction z is what the last layer makes of
    them, without f. (alpha / 2 |W|^2 + l1 |W|_1) / n is added to the loss: see `steepest.sklearn` for the parameters.

    - `loss` ("squared_error"): (y - z)^2 / 2; scikit-learn reports its mean over the outputs and follows the gradient
      of its sum, and so does this. "poisson": y log(y / e^z) - y + e^z, half the Poisson deviance, summed over the
      outputs, for y >= 0; e^z is then the prediction.

    >>> import numpy as np
    >>> X = np.linspace(-3, 3, 200)[:, None]
    >>> MLPRegressor(hidden_layer_sizes=(30,), activation="tanh", solver="lbfgs", random_state=0).fit(
    ...     X, np.sin(X[:, 0])
    ... ).score(X, np.sin(X[:, 0])) > 0.999
    True
    """

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012 - scikit-learn's convention
        **BaseMLP._parameter_constraints,
        "loss": [StrOptions({"squared_error", "poisson"})],
    }

    def __init__(
        self,
        loss: str = "squared_error",
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
        solver_options: dict[str, Any] | None = None,
        callbacks: Any = None,
    ) -> None:
        self._keep(locals())

    def _check_X_y(self, X: Any, y: Any, reset: bool, **options: Any) -> tuple[Any, Any]:
        return super()._check_X_y(X, y, reset, y_numeric=True, **options)

    def _targets(self, y: Any, dtype: np.dtype[Any]) -> Array:
        if self.loss == "poisson" and y.min() < 0:
            raise ValueError(f"y: loss='poisson' expects numbers >= 0, got {y.min()}")
        return np.ascontiguousarray(y.reshape(len(y), -1), dtype)

    def _last_layer(self, targets: Array) -> tuple[str, int]:
        return "exp" if self.loss == "poisson" else "identity", targets.shape[1]

    @available_if(stochastic)
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Trains for one epoch over these rows; the optimizer goes on from its state, also after pickling.

        The callbacks' `on_train_begin` is called by the first call alone and `on_train_end` never, as more may follow.
        """
        return self._fit_part(X, y, sample_weight)

    def predict(self, X: Any) -> Array:
        """The predicted numbers, (n_samples,), or (n_samples, n_outputs) if there are several."""
        y = self._outputs(X)
        return y[:, 0] if self.n_outputs_ == 1 else y
