"""The scikit-learn estimators: equal to scikit-learn's where it has them, and what they have beyond."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

pytest.importorskip("sklearn", minversion="1.6")

from sklearn import datasets, neural_network
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import parametrize_with_checks

from steepest.sklearn import MLPClassifier, MLPRegressor

Array = NDArray[Any]

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

# Without a hidden layer 200 steps of 0.001, which is all that scikit-learn's defaults allow, lead nowhere.
LINEAR: dict[str, Any] = {"hidden_layer_sizes": (), "learning_rate_init": 0.1}
CHECKED = [kind(**setting) for setting in ({}, LINEAR) for kind in (MLPClassifier, MLPRegressor)]


@pytest.fixture(autouse=True, scope="module")
def _one_blas_thread() -> Iterator[None]:
    """scikit-learn's networks are small here, and two threads of BLAS wait for each other on busy cores."""
    with threadpool_limits(1, "blas"):
        yield


@parametrize_with_checks(CHECKED)  # type: ignore[untyped-decorator]
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def scaled(x: Array) -> Array:
    return np.asarray((x - x.mean(0)) / x.std(0))


def data(name: str) -> tuple[Any, Any, Array, Array]:
    """scikit-learn's estimator, ours, inputs and targets."""
    classifiers = neural_network.MLPClassifier, MLPClassifier
    regressors = neural_network.MLPRegressor, MLPRegressor
    match name:
        case "digits":
            x, y = datasets.load_digits(return_X_y=True)
            return *classifiers, x / 16, y
        case "cancer":
            x, y = datasets.load_breast_cancer(return_X_y=True)
            return *classifiers, scaled(x), np.array(["benign", "malignant"])[y]
        case "diabetes":
            x, y = datasets.load_diabetes(return_X_y=True)
            return *regressors, scaled(x), y / 100
        case "labels":
            x, y = datasets.make_multilabel_classification(300, 20, random_state=0)
            return *classifiers, scaled(x), y
    x, y = datasets.make_regression(300, 10, n_targets=3, random_state=0)
    return *regressors, x, y / 100


VARIANTS: dict[str, dict[str, Any]] = {
    "adam": {"solver": "adam"},
    "sgd": {"solver": "sgd"},
    "plain momentum, invscaling": {
        "solver": "sgd",
        "nesterovs_momentum": False,
        "learning_rate": "invscaling",
        "learning_rate_init": 0.1,
    },
    "adaptive": {"solver": "sgd", "learning_rate": "adaptive", "tol": 0.05, "n_iter_no_change": 1},
    "early stopping": {"early_stopping": True, "n_iter_no_change": 3, "tol": 0.01},
    "no hidden layer": {"hidden_layer_sizes": (), "alpha": 1.0},
    "no momentum, tanh": {"solver": "sgd", "momentum": 0.0, "activation": "tanh", "hidden_layer_sizes": (20, 10)},
    "logistic, in order": {"activation": "logistic", "batch_size": 64, "shuffle": False},
    "lbfgs": {"solver": "lbfgs", "hidden_layer_sizes": (10,), "max_iter": 10},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["digits", "cancer", "diabetes", "labels", "outputs"])
def test_training_is_scikit_learns(name: str, variant: str) -> None:
    """Initial weights, batches, losses, scores and what comes of them."""
    theirs, ours, x, y = data(name)
    weight = np.random.default_rng(0).random(len(x)) if variant in ("adam", "early stopping", "lbfgs") else None
    settings = {"max_iter": 20, "random_state": 3, **VARIANTS[variant]}
    if name == "diabetes" and variant == "no hidden layer":
        settings["loss"] = "poisson"
    a, b = theirs(**settings).fit(x, y, weight), ours(**settings).fit(x, y, weight)
    for attribute in ("loss_curve_", "validation_scores_", "best_loss_", "best_validation_score_", "loss_"):
        if (expected := getattr(a, attribute, None)) is not None:
            np.testing.assert_allclose(getattr(b, attribute), expected, rtol=0, atol=1e-9, err_msg=attribute)
    for attribute in ("n_iter_", "t_", "n_layers_", "n_outputs_", "out_activation_", "n_features_in_"):
        assert getattr(a, attribute) == getattr(b, attribute), attribute
    for expected, got in zip(a.coefs_ + a.intercepts_, b.coefs_ + b.intercepts_, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-7)
    assert b.predict(x).dtype == a.predict(x).dtype
    if ours is MLPClassifier:
        assert np.array_equal(a.predict(x), b.predict(x))
        np.testing.assert_allclose(b.predict_proba(x), a.predict_proba(x), atol=1e-7)
    else:
        np.testing.assert_allclose(b.predict(x), a.predict(x), atol=1e-6)


def test_initial_weights_are_scikit_learns() -> None:
    """A learning rate of next to nothing leaves them as they were drawn."""
    x, y = datasets.load_iris(return_X_y=True)
    settings: dict[str, Any] = {"random_state": 1, "max_iter": 1, "solver": "sgd", "learning_rate_init": 1e-300}
    a, b = neural_network.MLPClassifier(**settings).fit(x, y), MLPClassifier(**settings).fit(x, y)
    assert all(np.array_equal(*pair) for pair in zip(a.coefs_ + a.intercepts_, b.coefs_ + b.intercepts_, strict=True))


@pytest.mark.parametrize("ours", [MLPClassifier, MLPRegressor])
def test_parameters_are_scikit_learns_and_then_ours(ours: Any) -> None:
    import inspect

    theirs = getattr(neural_network, ours.__name__)
    expected, got = (list(inspect.signature(kind).parameters.values()) for kind in (theirs, ours))
    pairs = list(zip(expected, got, strict=False))
    assert all((a.name, a.default, a.kind) == (b.name, b.default, b.kind) for a, b in pairs)
    added = {"dropout", "l1", "solver_options", "callbacks"} | ({"class_weight"} if ours is MLPClassifier else set())
    assert {p.name for p in got[len(expected) :]} == added


def test_warning_of_unfinished_training() -> None:
    x, y = datasets.load_iris(return_X_y=True)
    with pytest.warns(ConvergenceWarning, match=r"Maximum iterations \(2\) reached"):
        MLPClassifier(max_iter=2).fit(x, y)
