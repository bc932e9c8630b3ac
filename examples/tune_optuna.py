"""Bayesian search with Optuna: of a network of one's own, with pruning, and of an estimator.

The first study proposes learning rate, units, dropout and weight decay for a network on the digits; after
every epoch `OptunaPruning` reports the validation loss, and Optuna's pruner ends what is worse than the
median of the earlier trials. The second is `OptunaSearchCV`, which searches an estimator as scikit-learn's
own searches do. Test data are looked at once, at the end. Needs `pip install "steepest[tune,sklearn]"
"optuna-integration[sklearn]"`.

    $ python examples/tune_optuna.py
    create_study: 40 trials, 26 of them pruned, 565 of 1,200 epochs trained
    validation loss 0.0319 with {'units': 256, 'dropout': 0.3, 'weight_decay': 0.0106, 'lr': 0.0097}; first trial 0.0722
    test accuracy 96.1%
    OptunaSearchCV: 10 trials, cross-validated accuracy 96.4% with {'learning_rate_init': 0.0286, 'alpha': 6.06e-05}
    test accuracy 96.7%
"""

import argparse
import warnings

import numpy as np
import optuna

try:
    from optuna_integration import OptunaSearchCV
except ImportError:
    raise SystemExit('OptunaSearchCV is a package of its own: pip install "optuna-integration[sklearn]"') from None

import steepest as sp
from steepest import datasets, metrics, nn
from steepest.sklearn import MLPClassifier
from steepest.train import Trainer
from steepest.tune import OptunaPruning, SeededSampler

parser = argparse.ArgumentParser(description="Bayesian search with Optuna.")
parser.add_argument("--quick", action="store_true", help="fewer and shorter trials")
quick = parser.parse_args().quick
trials, epochs = (12, 8) if quick else (40, 30)

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # OptunaSearchCV is new
train, validation, test = datasets.split(*datasets.load_digits(), validation=0.15, test=0.2)
assert validation is not None and test is not None


def fitted(trial: optuna.Trial | optuna.trial.FixedTrial, callbacks: list[OptunaPruning]) -> Trainer:
    """A network with the settings that the trial proposes, trained."""
    layers = [nn.Dense(trial.suggest_categorical("units", (32, 64, 128, 256))), nn.ReLU()]
    layers += [nn.Dropout(trial.suggest_float("dropout", 0.0, 0.6, step=0.1)), nn.Dense(10)]
    model = nn.Sequential(layers, input_shape=64)
    decay = trial.suggest_float("weight_decay", 1e-4, 0.3, log=True)
    optimizer = sp.AdamW(model.param_groups(weight_decay=decay), lr=trial.suggest_float("lr", 1e-4, 0.1, log=True))
    trainer = Trainer(model, sp.losses.softmax_cross_entropy, optimizer, [metrics.accuracy])
    trainer.fit(*train, epochs=epochs, validation_data=validation, callbacks=callbacks, verbose=False)
    return trainer


def objective(trial: optuna.Trial) -> float:
    """The smallest validation loss."""
    return min(fitted(trial, [OptunaPruning(trial, "val_loss")]).history.history["val_loss"])


sampler = SeededSampler(lambda seed: optuna.samplers.TPESampler(seed=seed), seed=0)
study = optuna.create_study(sampler=sampler, pruner=optuna.pruners.MedianPruner(n_warmup_steps=3))
study.optimize(objective, n_trials=trials)
done = study.get_trials()
pruned = sum(trial.state.name == "PRUNED" for trial in done)
trained_epochs = sum(len(trial.intermediate_values) for trial in done)
best = {name: float(f"{x:.3g}") if isinstance(x, float) else x for name, x in study.best_params.items()}
print(f"create_study: {trials} trials, {pruned} of them pruned, {trained_epochs} of {trials * epochs:,} epochs trained")
print(f"validation loss {study.best_value:.4f} with {best}; first trial {done[0].value:.4f}")
accuracy = fitted(optuna.trial.FixedTrial(study.best_params), []).evaluate(*test)["accuracy"]
print(f"test accuracy {accuracy:.1%}")
assert study.best_value <= done[0].value and pruned > 0 and accuracy > 0.93

x = np.concatenate([train[0], validation[0]])
y = np.concatenate([train[1], validation[1]])
search = OptunaSearchCV(
    MLPClassifier((64,), solver="adamw", max_iter=5 if quick else 20, random_state=0),
    {
        "learning_rate_init": optuna.distributions.FloatDistribution(1e-3, 3e-2, log=True),
        "alpha": optuna.distributions.FloatDistribution(1e-5, 0.1, log=True),
    },
    n_trials=3 if quick else 10,
    cv=3,
    random_state=0,
)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # training ends by its epochs
    search.fit(x, y)
best = {name: float(f"{value:.3g}") for name, value in search.best_params_.items()}
print(f"OptunaSearchCV: {len(search.trials_)} trials, cross-validated accuracy {search.best_score_:.1%} with {best}")
print(f"test accuracy {search.score(*test):.1%}")
assert search.score(*test) > 0.9
