"""scikit-learn's own callbacks, where it has them (1.9): a task for the fit, a subtask for every epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # before scikit-learn 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """No callbacks."""

    def with_callbacks(method: Callable[..., Any]) -> Callable[..., Any]:
        """The method as it is."""
        return method


__all__ = ["CallbackSupportMixin", "Tasks", "with_callbacks"]


class Tasks:
    """What scikit-learn's callbacks are told of: the fit, from `__init__` to `close`, and its epochs."""

    def __init__(self, estimator: Any, X: Any, y: Any, sample_weight: Any) -> None:
        self._given = {
            "estimator": estimator,
            "X": X,
            "y": y,
            "metadata": None if sample_weight is None else {"sample_weight": sample_weight},
        }
        self._fit: Any = None
        self._epoch: Any = None
        if hasattr(estimator, "_init_callback_context"):
            self._fit = estimator._init_callback_context(max_subtasks=estimator.max_iter)
            self._fit.call_on_fit_task_begin(**self._given)

    def begin_epoch(self) -> None:
        """Opens the epoch's subtask."""
        if self._fit is not None and hasattr(self._given["estimator"], "_skl_callbacks"):
            self._epoch = self._fit.subcontext(task_name="epoch")
            self._epoch.call_on_fit_task_begin(**self._given)

    def end_epoch(self) -> bool:
        """Closes it; whether a callback wants the fit to stop."""
        if self._epoch is None:
            return False
        epoch, self._epoch = self._epoch, None
        return bool(epoch.call_on_fit_task_end(**self._given, reconstruction_attributes=self._parameters))

    def close(self) -> None:
        """Ends the fit, and an epoch that L-BFGS broke off."""
        if self._epoch is not None:
            self._epoch.call_on_fit_task_end(estimator=self._given["estimator"])
        if self._fit is not None:
            self._fit.call_on_fit_task_end(**self._given, reconstruction_attributes=self._parameters)

    def _parameters(self) -> dict[str, Any]:
        """What makes a copy of the estimator one that is fitted as of now."""
        estimator = self._given["estimator"]
        return {name: [array.copy() for array in getattr(estimator, name)] for name in ("coefs_", "intercepts_")}
