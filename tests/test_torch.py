"""Every rule, option and loss equals PyTorch's: in float64, to 1e-12 over 100 steps."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import steepest as sp

torch: Any = pytest.importorskip("torch")
functional: Any = torch.nn.functional
pytestmark = pytest.mark.torch

Array = NDArray[Any]
STEPS = 100

GRID: dict[Any, dict[str, list[Any]]] = {  # all combinations, as far as they are allowed
    sp.SGD: {
        "momentum": [0.0, 0.9],
        "dampening": [0.0, 0.3],
        "weight_decay": [0.0, 0.1],
        "nesterov": [False, True],
        "maximize": [False, True],
    },
    sp.RMSprop: {
        "alpha": [0.99, 0.7],
        "eps": [1e-8, 0.1],
        "weight_decay": [0.0, 0.1],
        "momentum": [0.0, 0.9],
        "centered": [False, True],
        "maximize": [False, True],
    },
    sp.Adagrad: {
        "lr_decay": [0.0, 0.1],
        "weight_decay": [0.0, 0.1],
        "initial_accumulator_value": [0.0, 0.5],
        "eps": [1e-10, 0.1],
        "maximize": [False, True],
    },
    sp.Adam: {
        "betas": [(0.9, 0.999), (0.5, 0.6), (0.0, 0.0)],
        "eps": [1e-8, 0.1],
        "weight_decay": [0.0, 0.1],
        "amsgrad": [False, True],
        "maximize": [False, True],
    },
    sp.AdamW: {
        "betas": [(0.9, 0.999), (0.5, 0.6)],
        "eps": [1e-8, 0.1],
        "weight_decay": [0.0, 0.01, 0.5],
        "amsgrad": [False, True],
        "maximize": [False, True],
    },
    sp.NAdam: {
        "betas": [(0.9, 0.999), (0.5, 0.6)],
        "eps": [1e-8, 0.1],
        "weight_decay": [0.0, 0.1],
        "momentum_decay": [4e-3, 0.0, 0.5],
        "decoupled_weight_decay": [False, True],
        "maximize": [False, True],
    },
}


def variants() -> Iterator[Any]:
    for rule, grid in GRID.items():
        for values in product(*grid.values()):
            options = dict(zip(grid, values, strict=True))
            if options.get("nesterov") and (options["momentum"] == 0 or options["dampening"] != 0):
                continue
            if options["maximize"] and (options["weight_decay"] == 0 or options.get("eps") == 0.1):
                continue  # the sign matters beside a decay; the rest would only take time
            yield pytest.param(rule, options, id=f"{rule.__name__}-{'-'.join(map(str, values))}")


@pytest.fixture(autouse=True)
def _torch_in_double() -> Iterator[None]:
    """NAdam keeps its momentum product in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def start() -> list[Array]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((3, 4)), rng.standard_normal(5), np.array(0.7)]


@functools.cache
def gradients(step: int) -> list[Array | None]:
    """With one that is missing in every third step."""
    rng = np.random.default_rng(1000 + step)
    grads: list[Array | None] = [x + rng.standard_normal(x.shape) for x in start()]
    if step % 3 == 1:
        grads[1] = None
    return grads


def give(tensors: list[Any], grads: list[Array | None]) -> None:
    for tensor, g in zip(tensors, grads, strict=True):
        tensor.grad = None if g is None else torch.tensor(g)  # a copy: clipping is in place


def assert_equal(params: list[Array], tensors: list[Any]) -> None:
    for p, tensor in zip(params, tensors, strict=True):
        np.testing.assert_allclose(p, tensor.detach().numpy(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("rule", "options"), list(variants()))
def test_every_rule_and_option(rule: Any, options: dict[str, Any]) -> None:
    params, tensors = start(), [torch.tensor(x, requires_grad=True) for x in start()]
    ours = rule(params, lr=0.01, **options)
    theirs = getattr(torch.optim, rule.__name__)(tensors, lr=0.01, foreach=False, **options)
    for step in range(STEPS):
        if step == 60:
            ours.lr = theirs.param_groups[0]["lr"] = 0.003
        grads = gradients(step)
        give(tensors, grads)
        ours.step(grads)
        theirs.step()
    assert_equal(params, tensors)
    assert not any(np.array_equal(p, x) for p, x in zip(params, start(), strict=True))
    for i, tensor in enumerate(tensors):  # the state has PyTorch's names
        state = ours.state_dict()["state"][i]
        for name, value in theirs.state[tensor].items():
            if value is not None:
                np.testing.assert_allclose(state[name], np.asarray(value), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("rule", list(GRID))
def test_defaults_are_the_same(rule: Any) -> None:
    ours = inspect.signature(rule).parameters
    theirs = inspect.signature(getattr(torch.optim, rule.__name__)).parameters
    shared = [name for name in theirs if name in ours and name != "params"]
    assert set(GRID[rule]) <= set(shared)
    assert {name: ours[name].default for name in shared} == {name: theirs[name].default for name in shared}


@pytest.mark.parametrize("rule", list(GRID))
def test_defaults_do_the_same(rule: Any) -> None:
    params, tensors = start(), [torch.tensor(x, requires_grad=True) for x in start()]
    ours, theirs = rule(params), getattr(torch.optim, rule.__name__)(tensors)
    for step in range(STEPS):
        give(tensors, gradients(step))
        ours.step(gradients(step))
        theirs.step()
    assert_equal(params, tensors)


@pytest.mark.parametrize("rule", list(GRID))
def test_param_groups(rule: Any) -> None:
    params, tensors = start(), [torch.tensor(x, requires_grad=True) for x in start()]
    ours = rule([{"params": params[:2]}, {"params": params[2:], "lr": 0.1, "weight_decay": 0.2}], lr=0.02)
    theirs = getattr(torch.optim, rule.__name__)(
        [{"params": tensors[:2]}, {"params": tensors[2:], "lr": 0.1, "weight_decay": 0.2}], lr=0.02
    )
    for step in range(STEPS):
        grads = gradients(step)
        give(tensors, grads)
        ours.step([grads[:2], grads[2:]])
        theirs.step()
    assert_equal(params, tensors)


@pytest.mark.parametrize("max_norm", [0.5, 3.0, 100.0])
@pytest.mark.parametrize("rule", list(GRID))
def test_max_norm_is_clip_grad_norm(rule: Any, max_norm: float) -> None:
    params, tensors = start(), [torch.tensor(x, requires_grad=True) for x in start()]
    ours = rule(params, lr=0.01, max_norm=max_norm)
    theirs = getattr(torch.optim, rule.__name__)(tensors, lr=0.01)
    for step in range(STEPS):
        grads = gradients(step)
        give(tensors, grads)
        norm = float(torch.nn.utils.clip_grad_norm_(tensors, max_norm))
        ours.step(grads)
        theirs.step()
        assert ours.last_norm == pytest.approx(norm, rel=1e-14)
    assert_equal(params, tensors)


@pytest.mark.parametrize("maximize", [False, True])
def test_max_value_is_clip_grad_value(maximize: bool) -> None:
    params, tensors = start(), [torch.tensor(x, requires_grad=True) for x in start()]
    ours = sp.Adam(params, lr=0.01, weight_decay=0.1, max_value=0.5, maximize=maximize)
    theirs = torch.optim.Adam(tensors, lr=0.01, weight_decay=0.1, maximize=maximize)
    for step in range(STEPS):
        give(tensors, gradients(step))
        torch.nn.utils.clip_grad_value_(tensors, 0.5)
        ours.step(gradients(step))
        theirs.step()
    assert_equal(params, tensors)


def test_gradients_that_are_scaled() -> None:
    params, tensors = start(), [torch.tensor(x, requires_grad=True) for x in start()]
    ours, theirs = sp.NAdam(params, max_norm=1.0), torch.optim.NAdam(tensors)
    for step in range(STEPS):
        grads = gradients(step)
        give(tensors, grads)
        torch.nn.utils.clip_grad_norm_(tensors, 1.0)
        ours.step([None if g is None else g * 1024 for g in grads], grad_scale=1 / 1024)
        theirs.step()
    assert_equal(params, tensors)


def test_tensors_are_updated_in_place_without_copies() -> None:
    model = torch.nn.Linear(3, 2, dtype=torch.float32)
    twin = torch.nn.Linear(3, 2, dtype=torch.float32)
    twin.load_state_dict(model.state_dict())
    x = torch.randn(7, 3, dtype=torch.float32)
    ours = sp.AdamW([p.detach().numpy() for p in model.parameters()], lr=0.1)
    theirs = torch.optim.AdamW(twin.parameters(), lr=0.1)
    for _ in range(10):
        for m in (model, twin):
            m.zero_grad()
            m(x).square().mean().backward()
        ours.step([p.grad.numpy() for p in model.parameters()])
        theirs.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------------------------------
# Losses


def by_torch(x: Array, loss: Any) -> tuple[float, Array]:
    tensor = torch.tensor(x, requires_grad=True)
    value = loss(tensor)
    value.backward()
    gradient: Array = tensor.grad.numpy()
    return float(value.detach()), gradient


def assert_same_loss(ours: tuple[float, Array], theirs: tuple[float, Array], dtype: Any) -> None:
    tolerance = 1e-13 if dtype == np.float64 else 2e-6
    assert ours[0] == pytest.approx(theirs[0], rel=tolerance)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=tolerance, atol=tolerance * float(np.abs(theirs[1]).max()))


both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
reductions = pytest.mark.parametrize("reduction", ["mean", "sum"])
RNG = np.random.default_rng(5)
X, TARGETS, Q = 3 * RNG.standard_normal((9, 4)), RNG.random((9, 4)), RNG.dirichlet(np.ones(4), 9)
WEIGHTS, LABELS = RNG.random(9), RNG.integers(0, 4, 9)


@both_dtypes
@reductions
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("mse", "mse_loss"),
        ("mae", "l1_loss"),
        ("huber", "huber_loss"),
        ("binary_cross_entropy", "binary_cross_entropy_with_logits"),
    ],
)
def test_elementwise_losses(ours: str, theirs: str, reduction: str, dtype: Any) -> None:
    call, reference = getattr(sp.losses, ours), getattr(functional, theirs)
    x, y, w = X.astype(dtype), TARGETS.astype(dtype), WEIGHTS.astype(dtype)
    target = torch.tensor(y)
    plain = by_torch(x, lambda t: reference(t, target, reduction=reduction))
    assert_same_loss(call(x, y, reduction=reduction), plain, dtype)
    rows = torch.tensor(w)[:, None]
    total = float(w.sum()) * 4 if reduction == "mean" else 1.0
    weighted = by_torch(x, lambda t: (reference(t, target, reduction="none") * rows).sum() / total)
    assert_same_loss(call(x, y, reduction=reduction, sample_weight=w), weighted, dtype)


@both_dtypes
@pytest.mark.parametrize("delta", [0.1, 1.0, 2.5])
def test_delta_of_huber(delta: float, dtype: Any) -> None:
    x, y = X.astype(dtype), TARGETS.astype(dtype)
    theirs = by_torch(x, lambda t: functional.huber_loss(t, torch.tensor(y), delta=delta))
    assert_same_loss(sp.losses.huber(x, y, delta=delta), theirs, dtype)


@both_dtypes
@reductions
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_softmax_cross_entropy(smoothing: float, reduction: str, dtype: Any) -> None:
    x, q, w = X.astype(dtype), Q.astype(dtype), WEIGHTS.astype(dtype)
    for ours, theirs in ((LABELS, torch.tensor(LABELS)), (q, torch.tensor(q))):
        options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing}
        plain = by_torch(x, lambda t, theirs=theirs, options=options: functional.cross_entropy(t, theirs, **options))
        assert_same_loss(sp.losses.softmax_cross_entropy(x, ours, **options), plain, dtype)

        def weighted(t: Any, theirs: Any = theirs) -> Any:
            rows = functional.cross_entropy(t, theirs, reduction="none", label_smoothing=smoothing)
            return (rows * torch.tensor(w)).sum() / (float(w.sum()) if reduction == "mean" else 1.0)

        assert_same_loss(
            sp.losses.softmax_cross_entropy(x, ours, sample_weight=w, **options), by_torch(x, weighted), dtype
        )


@both_dtypes
@reductions
@pytest.mark.parametrize("ignored", [2, -100])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_ignore_index(smoothing: float, ignored: int, reduction: str, dtype: Any) -> None:
    x, labels = X.astype(dtype), LABELS.copy()
    labels[::4] = ignored
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing, "ignore_index": ignored}
    theirs = by_torch(x, lambda t: functional.cross_entropy(t, torch.tensor(labels), **options))
    assert_same_loss(sp.losses.softmax_cross_entropy(x, labels, **options), theirs, dtype)


@both_dtypes
def test_kl_divergence(dtype: Any) -> None:
    x, q = X.astype(dtype), Q.astype(dtype)
    q[0] = [0, 1, 0, 0]

    def divergence(t: Any) -> Any:
        return functional.kl_div(functional.log_softmax(t, dim=1), torch.tensor(q), reduction="batchmean")

    assert_same_loss(sp.losses.kl_divergence(x, q), by_torch(x, divergence), dtype)
