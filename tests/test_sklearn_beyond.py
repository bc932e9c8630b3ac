"""What the scikit-learn estimators have beyond scikit-learn's, and how they get on with the rest of it."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

pytest.importorskip("sklearn", minversion="1.6")

import sklearn
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_digits, load_iris, make_multilabel_classification
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import steepest as sp
from steepest.callbacks import Callback, EarlyStopping, ModelCheckpoint, ReduceLROnPlateau
from steepest.sklearn import MLPClassifier, MLPRegressor
from steepest.sklearn._network import PLANS, SOLVERS, Samples

Array = NDArray[Any]

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(autouse=True, scope="module")
def _one_blas_thread() -> Iterator[None]:
    with threadpool_limits(1, "blas"):
        yield


@pytest.fixture(scope="module")
def iris() -> tuple[Array, Array]:
    x, y = load_iris(return_X_y=True)
    return StandardScaler().fit_transform(x), y


def same(a: Any, b: Any) -> bool:
    """Whether two estimators have the same parameters, bit for bit."""
    return all(np.array_equal(*pair) for pair in zip(a.coefs_ + a.intercepts_, b.coefs_ + b.intercepts_, strict=True))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("rate", [None, "cosine"])
def test_every_optimizer_is_a_solver(iris: tuple[Array, Array], solver: str, rate: str | None) -> None:
    settings: dict[str, Any] = {"learning_rate": rate} if rate else {}
    start = {"sgd": 0.1, "momentum": 1.0, "adagrad": 0.1}.get(solver, 0.03)
    clf = MLPClassifier((20,), solver=solver, learning_rate_init=start, max_iter=60, random_state=0, **settings)
    assert clf.fit(*iris).score(*iris) > 0.95
    assert type(clf._network.optimizer).__name__.lower() == solver  # type: ignore[union-attr]


def test_schedules_by_name_and_by_function(iris: tuple[Array, Array]) -> None:
    rates = {}
    for name in PLANS:
        clf = MLPClassifier(learning_rate=name, learning_rate_init=0.01, max_iter=30, tol=0, random_state=0).fit(*iris)
        rates[name] = clf.history_.history["lr"]
    assert rates["cosine"][0] == rates["linear"][0] == 0.01 > rates["cosine"][-1] > 0 and rates["linear"][15] == 0.005
    assert max(rates["one-cycle"]) == pytest.approx(0.01, rel=0.1) and rates["one-cycle"][0] < 0.001
    assert rates["step"][9:11] == [0.01, 0.005] and rates["exponential"][2] == pytest.approx(0.01 * 0.95**2)
    by_function = MLPClassifier(learning_rate=sp.schedules.step(0.01, 10, 0.5), max_iter=30, tol=0, random_state=0)
    assert by_function.fit(*iris).history_.history["lr"] == rates["step"]  # an epoch is one batch here


def test_solver_options_reach_the_optimizer(iris: tuple[Array, Array]) -> None:
    clf = MLPClassifier(solver="adamw", solver_options={"weight_decay": 0.3, "max_norm": 0.5}, max_iter=3).fit(*iris)
    optimizer: Any = clf._network.optimizer
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0] and optimizer.last_norm > 0
    assert optimizer.param_groups[0]["l2"] == 1e-4 / 150 and optimizer.param_groups[1]["l2"] == 0


def test_l1_makes_weights_small_and_enters_the_loss(iris: tuple[Array, Array]) -> None:
    fits = [MLPClassifier((), l1=l1, learning_rate_init=0.1, max_iter=100, random_state=0).fit(*iris) for l1 in (0, 10)]
    plain, sparse_ = (np.abs(clf.coefs_[0]).sum() for clf in fits)
    assert sparse_ < plain / 3
    one = MLPClassifier((), l1=2.0, alpha=0, max_iter=1, random_state=0).fit(*iris)
    none = MLPClassifier((), alpha=0, max_iter=1, random_state=0).fit(*iris)
    start = MLPClassifier((), solver="sgd", learning_rate_init=1e-300, max_iter=1, random_state=0).fit(*iris).coefs_[0]
    assert one.loss_ == pytest.approx(none.loss_ + 2 * np.abs(start).sum() / 150)


def test_dropout_regularises_and_repeats(iris: tuple[Array, Array]) -> None:
    settings: dict[str, Any] = {"hidden_layer_sizes": (50, 50), "max_iter": 40, "learning_rate_init": 0.01}
    plain, *dropped = (MLPClassifier(dropout=p, random_state=0, **settings).fit(*iris) for p in (0, 0.5, 0.5))
    assert same(*dropped) and dropped[0].loss_ > 1.5 * plain.loss_ and dropped[0].score(*iris) > 0.9
    first = MLPClassifier(dropout=0.5, random_state=0, **(settings | {"max_iter": 1})).fit(*iris)
    assert abs(first.loss_ - MLPClassifier(random_state=0, **(settings | {"max_iter": 1})).fit(*iris).loss_) > 1e-4


def test_class_weights_are_sample_weights(iris: tuple[Array, Array]) -> None:
    x, y = iris
    names = np.array(["a", "b", "c"])[y]
    weights = {"a": 1.0, "b": 5.0, "c": 0.5}
    by_class = MLPClassifier(class_weight=weights, max_iter=10, random_state=0).fit(x, names)
    by_sample = MLPClassifier(max_iter=10, random_state=0).fit(x, names, [weights[name] for name in names])
    assert same(by_class, by_sample)
    part = slice(0, 110)
    balanced = MLPClassifier(class_weight="balanced", max_iter=5, random_state=0).fit(x[part], y[part])
    factors = np.array([110 / 150, 110 / 150, 110 / 30])[y[part]]
    assert same(balanced, MLPClassifier(max_iter=5, random_state=0).fit(x[part], y[part], factors))
    xs, labels = make_multilabel_classification(100, 6, n_classes=3, random_state=0)
    assert MLPClassifier(class_weight="balanced", max_iter=5).fit(xs, labels).predict(xs).shape == labels.shape
    with pytest.raises(ValueError, match="class_weight: 'balanced' needs all"):
        MLPClassifier(class_weight="balanced").partial_fit(x, y, classes=[0, 1, 2])


def test_validation_data_of_ones_own(iris: tuple[Array, Array]) -> None:
    x, x_val, y, y_val = train_test_split(*iris, random_state=0)
    settings: dict[str, Any] = {"max_iter": 30, "learning_rate_init": 0.01, "random_state": 0}
    clf = MLPClassifier(**settings).fit(x, y, X_val=x_val, y_val=y_val)
    assert clf.validation_loss_curve_ is not None and clf.validation_scores_ is not None
    assert clf.validation_scores_[-1] == clf.score(x_val, y_val)
    from sklearn.metrics import log_loss

    assert clf.validation_loss_curve_[-1] == pytest.approx(log_loss(y_val, clf.predict_proba(x_val)))
    assert same(clf, MLPClassifier(**settings).fit(x, y)), "validation changes nothing"
    weight = np.arange(len(y_val)) % 3
    weighted = MLPClassifier(**settings).fit(x, y, X_val=x_val, y_val=y_val, sample_weight_val=weight)
    assert weighted.validation_scores_[-1] == clf.score(x_val, y_val, weight)
    stopped = MLPClassifier(early_stopping=True, n_iter_no_change=3, **(settings | {"max_iter": 300}))
    stopped.fit(x, y, X_val=x_val, y_val=y_val)
    assert stopped.n_iter_ < 300 and stopped.t_ == stopped.n_iter_ * len(x)
    assert stopped.score(x_val, y_val) == stopped.best_validation_score_
    xr, yr = load_diabetes(return_X_y=True)
    reg = MLPRegressor(max_iter=5, random_state=0).fit(xr[100:], yr[100:], X_val=xr[:100], y_val=yr[:100])
    assert reg.validation_loss_curve_[-1] == pytest.approx(((reg.predict(xr[:100]) - yr[:100]) ** 2).mean() / 2)
    assert reg.validation_scores_[-1] == pytest.approx(reg.score(xr[:100], yr[:100]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", [{}, {"alpha": 0}, {"l1": 1e-3}, {"solver": "sgd", "shuffle": False, "alpha": 0.1}])
def test_batches_that_nobody_watches_give_the_same_bits(options: dict[str, Any], dtype: Any, iris: Any) -> None:
    class Watch(Callback):
        def on_train_batch_begin(self, batch: int, logs: Any) -> None:
            pass

    x, y = iris
    for size in (32, 50, 150):
        runs = []
        for callbacks in (None, [Watch()]):
            model = MLPClassifier(8, max_iter=5, batch_size=size, random_state=0, callbacks=callbacks, **options)
            model.fit(x.astype(dtype), y)
            runs.append((model.loss_curve_, [w.tobytes() for w in model.coefs_ + model.intercepts_]))
        assert runs[0] == runs[1]


def test_callbacks_see_training_and_are_cloned(iris: tuple[Array, Array], tmp_path: Path) -> None:
    x, x_val, y, y_val = train_test_split(*iris, random_state=0)
    seen: list[Any] = []

    class Watch(Callback):
        def on_train_batch_end(self, batch: int, logs: Any) -> None:
            seen.append((batch, logs["loss"]))

        def on_epoch_end(self, epoch: int, logs: Any) -> None:
            seen.append((epoch, list(logs), self.trainer.model.params.size, self.params))

    stop, slow = EarlyStopping("val_loss", patience=2, min_delta=0.01), ReduceLROnPlateau("lr", factor=0.9, patience=1)
    keep = ModelCheckpoint(tmp_path / "{epoch}.safetensors")
    clf = MLPClassifier(
        (20,), batch_size=56, learning_rate_init=0.05, max_iter=100, callbacks=[Watch(), stop, slow, keep]
    )
    clf.set_params(random_state=0).fit(x, y, X_val=x_val, y_val=y_val)
    assert [s[0] for s in seen[:3]] == [0, 1, 0] and seen[2][1:] == (
        ["loss", "lr", "val_loss", "val_score"],
        4 * 20 + 20 + 20 * 3 + 3,
        {"epochs": 100, "steps": 2},
    )
    assert stop.stopped_epoch is not None and clf.n_iter_ == stop.stopped_epoch + 1 < 100
    assert clf.validation_loss_curve_ and stop.best_epoch and stop.best == clf.validation_loss_curve_[stop.best_epoch]
    from sklearn.metrics import log_loss

    assert log_loss(y_val, clf.predict_proba(x_val)) == pytest.approx(stop.best), "the best weights are back"
    assert clf.history_.history["lr"][3] < 0.05 and len(list(tmp_path.iterdir())) == clf.n_iter_
    copied = clone(clf).callbacks
    assert [type(c) for c in copied] == [type(c) for c in clf.callbacks] and copied[1] is not stop
    assert not hasattr(stop, "trainer") and pickle.loads(pickle.dumps(clone(clf).set_params(callbacks=[stop])))


def test_partial_fit_keeps_the_optimizer_through_pickles_and_files(iris: tuple[Array, Array], tmp_path: Path) -> None:
    x, y = iris
    settings: dict[str, Any] = {"shuffle": False, "dropout": 0.2, "solver": "adamw", "random_state": 0}
    settings |= {"learning_rate": "cosine", "learning_rate_init": 0.01, "max_iter": 8, "activation": "tanh"}
    whole = MLPClassifier(**settings).fit(x, y)
    parts = MLPClassifier(**settings)
    for epoch in range(8):
        parts.partial_fit(x, y, classes=[0, 1, 2])
        if epoch == 2:
            parts = pickle.loads(pickle.dumps(parts))
        if epoch == 5:
            parts.save(tmp_path / "part.safetensors")
            parts = MLPClassifier.load(tmp_path / "part.safetensors")
    assert same(whole, parts) and whole.loss_curve_ == parts.loss_curve_ and parts.t_ == whole.t_


def test_warm_start_keeps_the_optimizer(iris: tuple[Array, Array]) -> None:
    settings: dict[str, Any] = {"shuffle": False, "random_state": 0, "solver": "nadam"}
    whole = MLPClassifier(max_iter=10, **settings).fit(*iris)
    parts = MLPClassifier(max_iter=4, warm_start=True, **settings).fit(*iris)
    parts.set_params(max_iter=6).fit(*iris)
    assert same(whole, parts) and parts.loss_curve_ == whole.loss_curve_ and parts.history_.epoch == list(range(10))
    parts.set_params(learning_rate_init=1e-5, max_iter=1).fit(*iris)
    assert parts.history_.history["lr"][-1] == 1e-5
    parts.set_params(solver="lion").fit(*iris)
    with pytest.raises(ValueError, match=r"expected layers of \[4, 100, 3\] units"):
        parts.set_params(hidden_layer_sizes=(5,)).fit(*iris)


SAVED: dict[str, tuple[Any, Any]] = {
    "classes": (MLPClassifier(solver="sgd", random_state=np.random.RandomState(3)), lambda y: np.array(list("abc"))[y]),
    "objects": (MLPClassifier(()), lambda y: np.array(["x", "y", "z"], object)[y]),
    "two": (MLPClassifier(learning_rate=sp.schedules.cosine(0.1, 100)), lambda y: y == 1),
    "labels": (MLPClassifier(class_weight=[{0: 1, 1: 2}, {0: 1, 1: 1}]), lambda y: np.stack([y > 0, y == 2], 1) * 1),
    "numbers": (MLPRegressor("poisson", solver="lbfgs", hidden_layer_sizes=[7]), lambda y: y),
    "outputs": (MLPRegressor(solver_options={"amsgrad": True}), lambda y: np.stack([y, -y], 1)),
}


@pytest.mark.parametrize("name", SAVED)
def test_files_without_pickle(name: str, iris: tuple[Array, Array], tmp_path: Path) -> None:
    x, y = iris[0].astype(np.float32), SAVED[name][1](iris[1])
    estimator = clone(SAVED[name][0]).set_params(max_iter=5, callbacks=[Callback()]).fit(x, y)
    path = tmp_path / "estimator.safetensors"
    estimator.save(path)
    loaded = type(estimator).load(path)
    assert same(estimator, loaded) and loaded.coefs_[0].dtype == np.float32
    assert (
        np.array_equal(loaded.predict(x), estimator.predict(x))
        and loaded.predict(x).dtype == estimator.predict(x).dtype
    )
    parameters, restored = (e.set_params(callbacks=None).get_params() for e in (estimator, loaded))
    if name == "classes":  # the generator goes on
        assert parameters.pop("random_state").random() == restored.pop("random_state").random()
    assert parameters == restored
    fitted = {key for key in vars(estimator) if key.endswith("_")}
    assert fitted == {key for key in vars(loaded) if key.endswith("_")}
    assert sp.load(path).model.params.size == sum(a.size for a in estimator.coefs_ + estimator.intercepts_)
    other = MLPRegressor if isinstance(estimator, MLPClassifier) else MLPClassifier
    with pytest.raises(ValueError, match=f"expected a {other.__name__}, got {type(estimator).__name__}"):
        other.load(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"estimator\.safetensors: damaged"):
        type(estimator).load(path)


@pytest.mark.parametrize("form", ["csr_matrix", "csc_array"])
def test_sparse_matrices_train_and_predict_as_dense_ones(form: str) -> None:
    x, y = load_digits(return_X_y=True)
    x, y = x[:400] / 16, y[:400]
    held = getattr(sparse, form)(x)
    for solver in ("adam", "lbfgs"):
        settings: dict[str, Any] = {"max_iter": 4, "solver": solver, "random_state": 0, "early_stopping": True}
        a, b = MLPClassifier(**settings).fit(x, y), MLPClassifier(**settings).fit(held, y)
        assert same(a, b)
        np.testing.assert_allclose(a.predict_proba(x), b.predict_proba(held), rtol=1e-9)


def test_sparse_batches_leave_nothing_behind() -> None:
    """Of several sizes, with entries in several parts, and zeros among them; the matrix stays as it was."""
    rng = np.random.default_rng(0)
    rows, columns, values = rng.integers(0, 50, 900), rng.integers(0, 30, 900), rng.integers(-2, 3, 900) / 4
    indptr = np.searchsorted(np.sort(rows), np.arange(51))
    held = sparse.csr_array((values, columns, indptr), (50, 30))
    assert not held.has_canonical_format
    expected = held.toarray()
    samples = Samples(held, np.arange(50), None)
    for picked in (np.arange(20), np.arange(20, 27), slice(0, 50), np.array([3, 3, 49]), slice(40, 50)):
        batch, y, _ = samples.take(picked)
        assert np.array_equal(batch, expected[picked]) and np.array_equal(y, np.arange(50)[picked])
    assert held.nnz == 900 and not held.has_canonical_format


def test_float32_stays_float32(iris: tuple[Array, Array]) -> None:
    x, y = iris[0].astype(np.float32), iris[1]
    for solver in ("adam", "sgd", "lbfgs"):
        clf = MLPClassifier(solver=solver, max_iter=5).fit(x, y)
        assert {a.dtype for a in clf.coefs_ + clf.intercepts_} == {np.dtype(np.float32)}
        assert (
            clf.predict_proba(x).dtype == np.float32
            and MLPRegressor(max_iter=2).fit(x, y).predict(x).dtype == np.float32
        )


@pytest.mark.parametrize("form", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("target", ["classes", "two classes", "labels", "numbers"])
def test_weights_and_validation_data_may_have_another_dtype(target: str, dtype: Any, form: Any) -> None:
    """As fit, refit and partial_fit get them; the network's dtype is that of the first inputs."""
    rng = np.random.default_rng(0)
    x, c = rng.normal(size=(60, 4)), rng.integers(0, 3, 60)
    y = {"classes": c, "two classes": c > 0, "labels": np.stack([c > 0, c > 1], 1) * 1, "numbers": x[:, 0]}[target]
    kind: Any = MLPRegressor if target == "numbers" else MLPClassifier
    balance: dict[str, Any] = {"class_weight": {False: 2.0, True: 1.0}} if target == "two classes" else {}
    weight = rng.integers(1, 4, 60)
    settings: dict[str, Any] = {"max_iter": 2, "random_state": 0, "warm_start": True, **balance}
    model, plain = kind(**settings), kind(**settings)
    other = np.float64 if dtype == np.float32 else np.float32
    for inputs in (x.astype(dtype), x.astype(other)):
        val = {"X_val": x.astype(form), "y_val": y, "sample_weight_val": weight.astype(form)}
        model.fit(inputs, y, weight.astype(form), **val)
        plain.fit(x.astype(dtype), y, weight.astype(dtype), **{**val, "sample_weight_val": weight.astype(dtype)})
    model.partial_fit(x.astype(other), y, sample_weight=weight.astype(form))
    plain.partial_fit(x.astype(dtype), y, sample_weight=weight.astype(dtype))
    np.testing.assert_allclose(model.coefs_[0], plain.coefs_[0], rtol=1e-4, atol=1e-5)
    assert model.coefs_[0].dtype == dtype


def test_weights_that_are_written_or_replaced_hold(iris: tuple[Array, Array]) -> None:
    clf = MLPClassifier((5,), max_iter=3, random_state=0, warm_start=True).fit(*iris)
    clf.coefs_[1][...] = 0
    assert np.allclose(clf.predict_proba(iris[0]).std(axis=0), 0)
    clf.coefs_ = [coef + 1 for coef in clf.coefs_]
    before = [coef.copy() for coef in clf.coefs_]
    clf.set_params(learning_rate_init=1e-300, max_iter=1).fit(*iris)
    assert all(np.array_equal(*pair) for pair in zip(before, clf.coefs_, strict=True))


def test_pipeline_routes_validation_data() -> None:
    x, y = load_iris(return_X_y=True)
    x, x_val, y, y_val = train_test_split(x, y, random_state=0)
    with sklearn.config_context(enable_metadata_routing=True):
        clf = MLPClassifier(max_iter=20, random_state=0).set_fit_request(X_val=True, y_val=True, sample_weight=True)
        pipeline = make_pipeline(StandardScaler().set_fit_request(sample_weight=False), clf, transform_input=["X_val"])
        pipeline.fit(x, y, X_val=x_val, y_val=y_val, sample_weight=np.ones(len(x)))
        assert pipeline[-1].validation_scores_[-1] == pipeline.score(x_val, y_val)


def test_feature_names() -> None:
    pandas = pytest.importorskip("pandas")
    x = pandas.DataFrame({"a": [0.0, 1, 2, 3], "b": [1.0, 0, 1, 0]})
    clf = MLPClassifier(max_iter=2).fit(x, [0, 1, 0, 1])
    assert list(clf.feature_names_in_) == ["a", "b"]
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        clf.predict(x.to_numpy())


def test_two_processes_search_a_grid() -> None:
    """In a process of its own: joblib leaves workers behind, and a hang must end."""
    code = """if True:
        import warnings; warnings.simplefilter("ignore")
        from sklearn.datasets import load_digits
        from sklearn.model_selection import GridSearchCV
        from steepest.callbacks import EarlyStopping
        from steepest.sklearn import MLPClassifier
        X, y = load_digits(return_X_y=True)
        grid = {"solver": ["adam", "lion"], "hidden_layer_sizes": [(), (20,)]}
        est = MLPClassifier(max_iter=5, learning_rate_init=0.02, random_state=0, callbacks=[EarlyStopping("loss")])
        searches = [GridSearchCV(est, grid, n_jobs=n, cv=2).fit(X / 16, y) for n in (1, 2)]
        first, second = (list(search.cv_results_["mean_test_score"]) for search in searches)
        assert first == second and first[0] > 0.5, (first, second)
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


BAD: list[tuple[Any, Any, str]] = [
    (MLPClassifier(solver="adamax"), ValueError, "'solver' parameter of MLPClassifier must be"),
    (MLPClassifier(hidden_layer_sizes=(3, 0)), ValueError, r"hidden_layer_sizes must be > 0, got \[3, 0\]"),
    (MLPClassifier(learning_rate="plateau"), ValueError, "'learning_rate' parameter"),
    (MLPClassifier(dropout=1.0), ValueError, "'dropout' parameter"),
    (MLPClassifier(l1=-1), ValueError, "'l1' parameter"),
    (MLPClassifier(solver="lbfgs", l1=1), ValueError, "'lbfgs' needs a smooth loss"),
    (MLPClassifier(solver="lbfgs", dropout=0.1), ValueError, "'lbfgs' needs a smooth loss"),
    (MLPClassifier(solver_options={"lr": 1}), ValueError, "solver_options: expected some of .*amsgrad.*got 'lr'"),
    (MLPClassifier(solver_options={"weight_decay": 1}), ValueError, "got 'weight_decay'; the learning rate and"),
    (MLPClassifier(solver_options={"betta": 1}), ValueError, "got 'betta'$"),
    (MLPClassifier(callbacks=[print]), TypeError, "callbacks: expected instances of Callback"),
    (MLPClassifier(learning_rate=lambda step: -1.0, max_iter=2), ValueError, "lr"),
    (MLPRegressor(loss="poisson"), ValueError, "y: loss='poisson' expects numbers >= 0, got -1"),
    (MLPRegressor(solver="sgd", learning_rate_init=1e200), ValueError, "non-finite parameter weights.*max_norm"),
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("estimator", "error", "message"), BAD)
def test_refusals(estimator: Any, error: Any, message: str, iris: tuple[Array, Array]) -> None:
    with pytest.raises(error, match=message):
        estimator.fit(iris[0], iris[1] - 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"X_val": [[0.0] * 4]}, "expected both or none"),
        ({"sample_weight_val": [1.0]}, "expected both or none"),
        ({"X_val": [[0.0] * 3], "y_val": [0]}, "X has 3 features, but MLPClassifier is expecting 4"),
        ({"X_val": [[0.0] * 4], "y_val": [7]}, r"classes not in `self.classes_`.*7"),
        ({"sample_weight": -np.ones(150)}, "expected weights >= 0"),
        ({"sample_weight": np.zeros(150)}, "(?i)weight"),
    ],
)
def test_refused_data(arguments: dict[str, Any], message: str, iris: tuple[Array, Array]) -> None:
    with pytest.raises(ValueError, match=message):
        MLPClassifier(max_iter=1).fit(*iris, **arguments)


def test_partial_fit_is_for_stochastic_solvers() -> None:
    assert not hasattr(MLPClassifier(solver="lbfgs"), "partial_fit") and hasattr(MLPRegressor(), "partial_fit")
    with pytest.raises(ValueError, match="partial_fit does not support early_stopping"):
        MLPRegressor(early_stopping=True).partial_fit([[0.0]], [0.0])


def test_grid_search_over_callbacks_and_solvers(iris: tuple[Array, Array]) -> None:
    grid = {"callbacks": [None, [EarlyStopping("loss")]], "solver": ["adam", "lbfgs"]}
    search = GridSearchCV(MLPClassifier(max_iter=5, random_state=0), grid, cv=2, error_score="raise").fit(*iris)
    assert search.cv_results_["mean_test_score"].min() > 0.3


class Stop:
    """One of scikit-learn's callbacks, which counts tasks and stops after three epochs."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def setup(self, estimator: Any, context: Any) -> None:
        self.seen.append("setup")

    def teardown(self, estimator: Any, context: Any) -> None:
        self.seen.append("teardown")

    def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
        self.seen.append(f"begin {context.task_name}")

    def on_fit_task_end(self, estimator: Any, context: Any, *, X: Any, y: Any, fitted_estimator: Any) -> bool:
        self.seen.append(f"end {context.task_name}")
        assert fitted_estimator.predict(X).shape == y.shape and fitted_estimator.coefs_[0] is not estimator.coefs_[0]
        return self.seen.count("end epoch") == 3


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_scikit_learns_own_callbacks(solver: str, iris: tuple[Array, Array]) -> None:
    callback = pytest.importorskip("sklearn.callback")  # scikit-learn 1.9
    stop, monitor = Stop(), callback.ScoringMonitor(scoring="accuracy")
    clf = MLPClassifier(max_iter=20, solver=solver, random_state=0).set_callbacks(stop, monitor)
    clf.fit(*iris)
    assert clf.n_iter_ == 3
    epochs = ["begin epoch", "end epoch"] * 3
    assert stop.seen == ["setup", "begin fit", *epochs, "end fit", "teardown"]
    scores = [row["accuracy"] for row in monitor.get_logs().data if row["task_name"] == "epoch"]
    assert len(scores) == 3 and scores[-1] == clf.score(*iris)


def test_scikit_learns_progress_bar(iris: tuple[Array, Array], capsys: pytest.CaptureFixture[str]) -> None:
    callback = pytest.importorskip("sklearn.callback")
    pytest.importorskip("rich")
    search = GridSearchCV(MLPClassifier(max_iter=3), {"alpha": [0, 1]}, cv=2).set_callbacks(callback.ProgressBar())
    search.fit(*iris)
    assert "MLPClassifier" in capsys.readouterr().out


class Deep(MLPClassifier):
    """With a constructor of its own."""

    def __init__(self, n_units: int = 10, n_layers: int = 2, random_state: Any = None) -> None:
        super().__init__((n_units,) * n_layers, max_iter=20, random_state=random_state)
        self.n_units, self.n_layers = n_units, n_layers


def test_subclasses_with_a_constructor_of_their_own() -> None:
    X, y = load_iris(return_X_y=True)
    for deep in (clone(Deep(3, random_state=0)), GridSearchCV(Deep(3), {"random_state": [1, 2]}, cv=2)):
        fitted = deep.fit(X, y)
        assert [coef.shape[1] for coef in getattr(fitted, "best_estimator_", fitted).coefs_] == [3, 3, 3]


def test_lbfgs_takes_no_batches_and_keeps_its_losses() -> None:
    X, y = load_iris(return_X_y=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clf = MLPClassifier((5,), solver="lbfgs", batch_size=200, max_iter=1000, random_state=0).fit(X, y)
    assert len(clf.loss_curve_) == clf.n_iter_ and clf.best_loss_ == clf.loss_ == clf.loss_curve_[-1]


def test_an_alpha_of_few_digits_does_not_round_the_loss() -> None:
    X, y = load_iris(return_X_y=True)
    alphas: list[Any] = [0.25, np.float16(0.25)]
    fits = [MLPClassifier((5,), alpha=alpha, max_iter=3, random_state=0).fit(X, y) for alpha in alphas]
    assert fits[0].loss_curve_ == fits[1].loss_curve_


def test_input_is_not_looked_through_where_scikit_learn_is_told_so(
    iris: tuple[Array, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = iris
    clf = MLPClassifier((4,), max_iter=2, random_state=0).fit(x, y)
    gap = x.copy()
    gap[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        clf.predict_proba(gap)
    monkeypatch.setattr("steepest.sklearn._base._core", None)  # nor do our threads look
    with sklearn.config_context(assume_finite=True):
        chances = clf.predict_proba(gap)
    assert np.isnan(chances[0]).all() and np.isfinite(chances[1:]).all()
