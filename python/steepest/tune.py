"""Search for settings with Optuna: `pip install "steepest[tune]"`.

The search itself is Optuna's, or scikit-learn's for the estimators of `steepest.sklearn`; here is what
ties them to training. `steepest tune` does it all from the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from steepest.callbacks import Callback, Logs

try:
    import optuna
except ImportError as error:
    raise ImportError('steepest.tune needs Optuna: pip install "steepest[tune]"') from error

__all__ = ["OptunaPruning", "SeededSampler"]


class OptunaPruning(Callback):
    """Reports a quantity to an Optuna trial after every epoch, and ends the trial when its pruner says so.

    `monitor` is what the logs of an epoch have, in the study's direction: "val_loss" for one that
    minimizes, "val_accuracy" for one that maximizes. For `Trainer.fit(callbacks=...)` and the estimators
    of `steepest.sklearn(callbacks=...)`; a clone of an estimator reports to the same trial.

    Raises `optuna.TrialPruned` after an epoch whose trial is not worth going on with, which Optuna takes
    as the trial's end, and ValueError where `monitor` is not recorded.

        >>> import numpy as np, optuna, steepest as sp
        >>> from steepest import nn, tune
        >>> from steepest.train import Trainer
        >>> x = np.random.default_rng(0).normal(size=(64, 3))
        >>> def objective(trial):
        ...     model = nn.Sequential([nn.Dense(1)], 3, dtype=np.float64)
        ...     lr = trial.suggest_float("lr", 1e-3, 1.0, log=True)
        ...     trainer = Trainer(model, sp.losses.mse, sp.SGD(model.param_groups(), lr=lr))
        ...     pruning = tune.OptunaPruning(trial, "loss")
        ...     history = trainer.fit(x, x[:, :1], epochs=5, verbose=False, callbacks=[pruning])
        ...     return history.history["loss"][-1]
        >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
        >>> study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        >>> study.optimize(objective, n_trials=5)
        >>> [trial.state.name for trial in study.trials].count("COMPLETE") > 0
        True

    Source: Optuna's protocol `report` / `should_prune`, as its integrations for other trainers follow it.
    """

    def __init__(self, trial: optuna.Trial, monitor: str = "val_loss") -> None:
        self.trial, self.monitor = trial, monitor

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Reports, and asks whether to go on."""
        if self.monitor not in logs:
            raise ValueError(f"monitor: no {self.monitor!r} in the logs, which have {', '.join(logs)}")
        self.trial.report(logs[self.monitor], epoch)
        if self.trial.should_prune():
            raise optuna.TrialPruned(f"pruned after epoch {epoch + 1}: {self.monitor} {logs[self.monitor]:.6g}")

    def __deepcopy__(self, memo: dict[int, Any]) -> OptunaPruning:
        return self  # there is one trial, whoever clones the estimator

    def __sklearn_clone__(self) -> OptunaPruning:
        return self


class SeededSampler(optuna.samplers.BaseSampler):
    """A sampler whose every trial has a seed of its own: of `seed` and the trial's number.

    `make(seed)` gives the sampler for one trial, `optuna.samplers.TPESampler` for example. A study that
    was interrupted goes on with the proposals that it would have made, and several processes at one
    study never propose the same, where a sampler with one seed would start all over in each of them.

        >>> import optuna
        >>> from steepest.tune import SeededSampler
        >>> sampler = SeededSampler(lambda seed: optuna.samplers.TPESampler(seed=seed), seed=0)
        >>> study = optuna.create_study(sampler=sampler)
    """

    def __init__(self, make: Callable[[int], optuna.samplers.BaseSampler], seed: int = 0) -> None:
        self._make, self._seed = make, seed
        self._samplers: dict[int, optuna.samplers.BaseSampler] = {}  # of the trials that run

    def before_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        """Makes the trial's sampler."""
        seed = int(np.random.SeedSequence([self._seed, trial.number]).generate_state(1)[0])
        self._samplers[trial.number] = self._make(seed)
        self._samplers[trial.number].before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
        """As the trial's sampler has it."""
        space: dict[str, Any] = self._samplers[trial.number].infer_relative_search_space(study, trial)
        return space

    def sample_relative(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial, search_space: dict[str, Any]
    ) -> dict[str, Any]:
        """As the trial's sampler proposes."""
        proposed: dict[str, Any] = self._samplers[trial.number].sample_relative(study, trial, search_space)
        return proposed

    def sample_independent(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        """As the trial's sampler proposes."""
        return self._samplers[trial.number].sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        state: optuna.trial.TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Lets the trial's sampler go."""
        if sampler := self._samplers.pop(trial.number, None):  # none if another process began the trial
            sampler.after_trial(study, trial, state, values)
