"""What becomes of the scikit-learn estimators between fits: after refusals, pickling, and what was set by hand."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.6")

import sklearn.metrics
import sklearn.neural_network
from sklearn.datasets import load_iris
from sklearn.preprocessing import StandardScaler

from steepest.callbacks import ModelCheckpoint, ReduceLROnPlateau
from steepest.sklearn import MLPClassifier, MLPRegressor
from steepest.sklearn._training import Training

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, Y = load_iris(return_X_y=True)
IRIS = StandardScaler().fit_transform(X), Y


def fitted(kind: Any = MLPClassifier, **options: Any) -> Any:
    return kind(
        **{"hidden_layer_sizes": (5,), "max_iter": 30, "random_state": 0, "learning_rate_init": 0.05, **options}
    )


@pytest.mark.parametrize(
    ("parameters", "arguments", "message"),
    [
        ({"solver_options": {"betta": 1}}, {}, "solver_options: expected some of"),
        ({"callbacks": [print]}, {}, "callbacks: expected instances of Callback"),
        ({"callbacks": [ModelCheckpoint("/no/such/folder/m.safetensors")]}, {}, "expected a folder that exists"),
        ({"class_weight": {9: 1.0}}, {}, "not in class_weight"),
        ({"class_weight": {0: 0.0, 1: 0.0, 2: 0.0}}, {}, "class_weight: expected a weight above 0"),
        ({"early_stopping": True, "validation_fraction": 0.001}, {}, "The validation set is too small"),
        ({"early_stopping": True}, {"sample_weight": np.arange(150) < 2}, "sample_weight: expected weights above 0 in"),
        ({"solver": "lbfgs", "solver_options": {"amsgrad": True}}, {}, "solver_options: 'lbfgs' takes none"),
        (
            {"solver": "lbfgs", "callbacks": [ReduceLROnPlateau("loss")]},
            {},
            "expected an optimizer with a learning rate",
        ),
        ({}, {"X": IRIS[0][:, :3], "sample_weight": -np.ones(150)}, "sample_weight: expected weights >= 0"),
        ({}, {"X_val": IRIS[0][:, :3], "y_val": IRIS[1]}, "X_val, y_val, .*: X has 3 features"),
        ({"hidden_layer_sizes": [10.0]}, {}, "hidden_layer_sizes: expected integers"),
    ],
)
def test_a_refused_fit_leaves_what_there_was(parameters: Any, arguments: Any, message: str) -> None:
    x, y = IRIS
    c, other = (fitted().fit(x, y) for _ in range(2))
    before = c.loss_curve_
    with pytest.raises((TypeError, ValueError, FileNotFoundError), match=message):
        c.set_params(**parameters).fit(**{"X": x, "y": y, **arguments})
    assert c.loss_curve_ is before and np.array_equal(c.predict_proba(x), other.predict_proba(x))
    c.set_params(**{name: getattr(other, name) for name in parameters}).partial_fit(x, y)
    assert np.array_equal(c.predict_proba(x), other.partial_fit(x, y).predict_proba(x))


def test_a_refused_first_call_learns_nothing() -> None:
    x, y = IRIS
    c = fitted()
    with pytest.raises(ValueError, match="NaN"):
        c.partial_fit(x * np.nan, y, classes=[0, 1, 2])
    assert not hasattr(c, "classes_")
    c.partial_fit(x, np.array(["a", "b", "c"])[y], classes=["a", "b", "c"])
    r = fitted(MLPRegressor).fit(x, y)
    before = r.predict(x)
    with pytest.raises(ValueError, match=r"y_val: expected rows of shape \(1,\), got \(2,\)"):
        r.fit(x, y, X_val=x, y_val=np.column_stack([y, y]))
    assert np.array_equal(r.predict(x), before)


def test_an_item_of_coefs_that_is_replaced_is_trained_from() -> None:
    x, y = IRIS
    c = fitted(hidden_layer_sizes=(), warm_start=True).fit(x, y)
    c.coefs_[0] = np.zeros_like(c.coefs_[0])
    assert np.array_equal(c.partial_fit(x, y).coefs_[0], c._network.coefs[0]) and c.coefs_[0].any()
    c.coefs_[0] = np.zeros((4, 7))
    with pytest.raises(ValueError, match="coefs_, intercepts_: expected"):
        c.partial_fit(x, y)


@pytest.mark.parametrize("name", ["alpha", "l1"])
def test_a_penalty_that_is_taken_back(name: str) -> None:
    x, y = IRIS
    c, never = (fitted(hidden_layer_sizes=(), solver="sgd", momentum=0.0, alpha=0.0) for _ in range(2))
    c.set_params(**{name: 50.0}).partial_fit(x, y, classes=[0, 1, 2]).set_params(**{name: 0.0})
    never.partial_fit(x, y, classes=[0, 1, 2])
    never.coefs_[0][...], never.intercepts_[0][...] = c.coefs_[0], c.intercepts_[0]
    never._random_state = c._random_state
    assert np.array_equal(c.partial_fit(x, y).coefs_[0], never.partial_fit(x, y).coefs_[0])


@pytest.mark.parametrize("before", ["adam", "sgd", "rmsprop"])
@pytest.mark.parametrize("after", ["adam", "sgd", "adamw", "lbfgs"])
def test_a_pickled_estimator_goes_on_as_the_live_one(before: str, after: str) -> None:
    x, y = IRIS
    c = fitted(solver=before, warm_start=True, learning_rate_init=0.01).fit(x, y)
    d = pickle.loads(pickle.dumps(c))
    for each in (c, d):
        each.set_params(solver=after, learning_rate_init=0.02, max_iter=3).fit(x, y)
    assert c.history_.history == d.history_.history and np.array_equal(c.coefs_[0], d.coefs_[0])


def test_weights_set_by_hand_in_another_dtype() -> None:
    x, y = IRIS
    r, theirs = (
        fitted(MLPRegressor, hidden_layer_sizes=(2,)),
        sklearn.neural_network.MLPRegressor("squared_error", (2,), max_iter=1),
    )
    for each in (r.fit(x, y), theirs.fit(x, y)):
        each.coefs_ = [np.ones((4, 2), int), np.ones((2, 1), np.float32)]
        each.intercepts_ = [np.array([1, 2]), np.array([1])]
    assert np.allclose(r.predict(x), theirs.predict(x))
    assert r.partial_fit(x, y).coefs_[0].dtype == np.float64


def test_a_warm_start_with_another_loss_is_refused() -> None:
    x, y = IRIS
    r = fitted(MLPRegressor, warm_start=True).fit(x, y)
    with pytest.raises(
        ValueError, match="loss: the fit to go on from has 'identity' as last activation, this one 'exp'"
    ):
        r.set_params(loss="poisson").fit(x, y)


@pytest.mark.parametrize("names", ["stock custom", "schedule RandomState", "objects shape", "mapping a"])
def test_files_of_any_class_names(names: str, tmp_path: Path) -> None:
    x, y = IRIS
    first, second = names.split()
    labels = np.where(y > 0, second, first)
    c = fitted(class_weight={first: 1.0, second: 2.0}, max_iter=2).fit(x, labels)
    c.save(tmp_path / "c.safetensors")
    loaded = MLPClassifier.load(tmp_path / "c.safetensors")
    assert loaded.class_weight == c.class_weight and np.array_equal(loaded.predict(x), c.predict(x))


def test_class_weights_of_some_classes_in_any_batch() -> None:
    x, y = IRIS
    c = fitted(class_weight={1: 5.0}).partial_fit(x, y, classes=[0, 1, 2])
    c.partial_fit(x[y != 1], y[y != 1])
    several = (np.arange(300).reshape(100, 3) % 7 < 3).astype(int)
    c = fitted(class_weight=[{1: 3}, {1: 2}, {0: 2}]).partial_fit(x[:100], several, classes=[0, 1, 2])
    factors = np.where(several, [3.0, 2.0, 1.0], [1.0, 1.0, 2.0]).prod(axis=1)
    assert np.array_equal(c._class_factors(several), factors)
    c.partial_fit(x[:100], several * [0, 1, 1])
    with pytest.raises(ValueError, match="class_weight: expected a mapping for each of 3 labels"):
        c.set_params(class_weight=[{1: 3}]).partial_fit(x[:100], several)


def test_one_label_is_not_several() -> None:
    x, several = IRIS[0][:100], (np.arange(300).reshape(100, 3) % 7 < 3).astype(int)
    with pytest.raises(ValueError, match=r"y: expected 3 labels, 0 or 1, in each row, got shape \(100,\)"):
        fitted().fit(x, several, X_val=x, y_val=several[:, 0])


def test_interrupted_lbfgs_keeps_its_last_iterate(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = IRIS
    objective, calls = Training._objective, itertools.count()

    def interrupted(self: Any, params: Any) -> Any:
        if next(calls) == 33:
            raise KeyboardInterrupt
        return objective(self, params)

    monkeypatch.setattr(Training, "_objective", interrupted)
    with pytest.warns(UserWarning, match="interrupted"):
        c = fitted(solver="lbfgs", alpha=0.0, tol=0, max_iter=500).fit(x, y)
    assert c.loss_ == c.loss_curve_[-1] == pytest.approx(sklearn.metrics.log_loss(y, c.predict_proba(x)))


def test_lbfgs_with_validation_data_does_not_stop_early() -> None:
    x, y = IRIS
    c = fitted(solver="lbfgs", early_stopping=True, max_iter=5).fit(x, y, X_val=x, y_val=y)
    assert c.best_loss_ == min(c.loss_curve_) and c.best_validation_score_ is None and len(c.validation_scores_) == 5
