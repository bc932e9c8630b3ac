"""The optimizers' behaviour: structures, options, schedules, saved states, and refusals that change nothing.

What a rule computes is compared with the reference here, and with PyTorch in test_torch.py.
"""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import steepest as sp
from steepest import reference

Array = NDArray[Any]

# Every rule, and every option that changes what it keeps or computes.
VARIANTS: list[tuple[Any, dict[str, Any]]] = [
    (sp.SGD, {}),
    (sp.SGD, {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}),
    (sp.SGD, {"momentum": 0.9, "nesterov": True, "lr_in_velocity": True}),
    (sp.Momentum, {"beta": 0.8, "weight_decay": 0.1}),
    (sp.RMSprop, {}),
    (sp.RMSprop, {"centered": True, "momentum": 0.9, "eps_inside_sqrt": True}),
    (sp.Adagrad, {"lr_decay": 0.1, "initial_accumulator_value": 0.5}),
    (sp.Adagrad, {"eps_inside_sqrt": True}),
    (sp.Adam, {"weight_decay": 0.1, "amsgrad": True}),
    (sp.Adam, {"epsilon_hat": True}),
    (sp.AdamW, {"amsgrad": True, "l1": 0.1, "l2": 0.1}),
    (sp.NAdam, {"weight_decay": 0.1, "momentum_decay": 0.1}),
    (sp.NAdam, {"weight_decay": 0.1, "decoupled_weight_decay": True, "l2": 0.1}),
    (sp.Lion, {"weight_decay": 0.1, "maximize": True, "max_value": 0.7}),
]
RULES = [sp.SGD, sp.Momentum, sp.RMSprop, sp.Adagrad, sp.Adam, sp.AdamW, sp.NAdam, sp.Lion]
every_variant = pytest.mark.parametrize(
    ("rule", "options"), VARIANTS, ids=[f"{rule.__name__}-{'-'.join(options)}" for rule, options in VARIANTS]
)
every_rule = pytest.mark.parametrize("rule", RULES)
both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def frozen(x: Any) -> Any:
    """A value that compares equal where every byte is equal."""
    if isinstance(x, np.ndarray):
        return x.dtype.str, x.shape, x.flags.c_contiguous, x.flags.f_contiguous, x.tobytes(order="A")
    if isinstance(x, Mapping):
        return tuple((key, frozen(value)) for key, value in x.items())
    if isinstance(x, list | tuple):
        return tuple(frozen(value) for value in x)
    return type(x).__name__, repr(x)


def everything(opt: sp.Optimizer) -> Any:
    groups = [dict(group) for group in opt.param_groups]
    return frozen([groups, opt._core.snapshot(), opt.steps])


@contextmanager
def refused(opt: sp.Optimizer, error: type[Exception], *words: str) -> Iterator[None]:
    """The error has all the words, and every byte of parameters, options and state is as before."""
    before = everything(opt)
    with pytest.raises(error) as caught:
        yield
    for word in words:
        assert word in str(caught.value)
    assert everything(opt) == before


def make_arrays(dtype: Any = np.float64, seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal((3, 5)).astype(dtype),
        np.asfortranarray(rng.standard_normal((4, 2)).astype(dtype)),
        rng.standard_normal(37).astype(dtype),
        np.array(rng.standard_normal(), dtype),
        np.empty((0, 3), dtype),
    ]


def by_reference(rule: type[sp.Optimizer], p: Array, grads: list[Array], **options: Any) -> Array:
    state: dict[str, Any] = {}
    for t, g in enumerate(grads, 1):
        p, state = reference.RULES[rule.__name__](p, g, state, t, **options)
    return p


# ---------------------------------------------------------------------------------------------
# Structures


class Dots(Mapping[str, Any]):
    """A mapping that is no dict."""

    def __init__(self, **entries: Any) -> None:
        self.entries = entries

    def __getitem__(self, name: str) -> Any:
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


STRUCTURES: dict[str, tuple[Callable[[Array, Array], Any], Callable[[Array, Array], Any]]] = {
    "list": (lambda a, b: [a, b], lambda a, b: [a, b]),
    "tuple": (lambda a, b: (a, b), lambda a, b: [a, b]),
    "deque": (lambda a, b: deque([a, b]), lambda a, b: (a, b)),
    "generator": (lambda a, b: (x for x in (a, b)), lambda a, b: deque([a, b])),
    "values": (lambda a, b: {"a": a, "b": b}.values(), lambda a, b: [a, b]),
    "dict": (lambda a, b: {"a": a, "b": b}, lambda a, b: OrderedDict(b=b, a=a)),
    "numbers": (lambda a, b: {0: a, 7: b}, lambda a, b: {7: b, 0: a}),
    "mapping": (lambda a, b: Dots(a=a, b=b), lambda a, b: MappingProxyType({"b": b, "a": a})),
    "groups": (lambda a, b: [{"params": a}, {"params": [b]}], lambda a, b: [a, [b]]),
    "group of a mapping": (lambda a, b: [{"params": {"a": a, "b": b}}], lambda a, b: ({"a": a, "b": b},)),
    "groups of generators": (lambda a, b: ({"params": (x for x in [y])} for y in (a, b)), lambda a, b: [[a], [b]]),
}


@pytest.mark.parametrize("structure", STRUCTURES)
@every_rule
def test_every_structure_of_params(rule: Any, structure: str) -> None:
    of_params, of_grads = STRUCTURES[structure]
    a, b, *_ = make_arrays()
    first = [a.copy(), b.copy(order="K")]
    gradients = [make_arrays(seed=seed)[:2] for seed in (1, 2, 3)]
    opt = rule(of_params(a, b), lr=0.1)
    for g_a, g_b in gradients:
        opt.step(of_grads(g_a, g_b))
    defaults = {k: v for k, v in opt.param_groups[0].items() if k != "params"}
    for i, (p, start) in enumerate(zip((a, b), first, strict=True)):
        grads = [pair[i] for pair in gradients]
        np.testing.assert_array_equal(p, by_reference(rule, start, grads, **defaults), strict=True)
    assert opt.steps == 3 and opt.last_norm is None


@every_variant
@both_dtypes
def test_every_kind_of_array_follows_the_reference(rule: Any, options: dict[str, Any], dtype: Any) -> None:
    params = make_arrays(dtype)
    starts = [p.copy(order="K") for p in params]
    gradients = [make_arrays(dtype, seed) for seed in range(1, 5)]
    opt = rule(params, **options)
    for grads in gradients:
        opt.step(grads)
    options = {k: v for k, v in opt.param_groups[0].items() if k != "params"}
    for i, (p, start) in enumerate(zip(params, starts, strict=True)):
        expected = by_reference(rule, start, [grads[i] for grads in gradients], **options)
        np.testing.assert_array_equal(p, expected, strict=True)
        assert p.flags.f_contiguous == start.flags.f_contiguous


@pytest.mark.parametrize("rule", [sp.Adam, sp.AdamW, sp.NAdam])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 1 - 2**-53), (1 - 2**-24, 0.5)])
def test_late_steps_follow_the_reference(rule: Any, betas: tuple[float, float]) -> None:
    late = [2**k + i for k in range(53) for i in (-1, 0, 1)]
    for t in [*late, 1_234_567, 2**53]:
        p, g = np.array([1.0, -0.5, 2.0]), np.array([0.1, 0.2, -3.0])
        opt = rule(p, betas=betas)
        saved = opt.state_dict()
        saved["state"][0]["step"] = t
        saved["state"][0]["exp_avg_sq"][:] = 0.5
        opt.load_state_dict(saved)
        options = {k: v for k, v in opt.param_groups[0].items() if k != "params"}
        expected, _ = reference.RULES[rule.__name__](p.copy(), g, opt.state_dict()["state"][0], t + 1, **options)
        opt.step(g)
        np.testing.assert_array_equal(p, expected)


def test_one_array_is_one_parameter() -> None:
    w = np.array([1.0, 2.0])
    opt = sp.SGD(w, lr=1.0)
    opt.step(np.array([1.0, 1.0]))
    np.testing.assert_array_equal(w, [0.0, 1.0])
    with refused(opt, TypeError, "grads: expected a numpy.ndarray", "got list", "numpy.asarray"):
        opt.step([np.ones(2)])


def test_float32_and_float64_in_one_optimizer() -> None:
    a, b = np.ones(7, np.float32), np.ones(5)
    opt = sp.Adam([a, b], lr=0.1)
    opt.step([np.full(7, 0.3, np.float32), np.full(5, 0.3)])
    for p in (a, b):
        g = np.full(p.shape, 0.3, p.dtype)
        np.testing.assert_array_equal(p, by_reference(sp.Adam, np.ones_like(p), [g], lr=0.1), strict=True)
    with refused(opt, TypeError, "grads[0]", "float32", "float64", "astype"):
        opt.step([np.ones(7), np.ones(5)])


def test_scalars_that_arithmetic_on_0d_arrays_gives_are_gradients_of_0d_parameters() -> None:
    x, y = np.array(3.0), np.array(2.0, np.float32)
    opt = sp.SGD([x, y], lr=0.5)
    opt.step([2 * x, y * y])
    assert x == 0 and y == 0
    with refused(opt, TypeError, "grads[1]", "float32"):
        opt.step([2 * x, np.float64(1)])
    with refused(opt, TypeError, "grads[0]", "int64"):
        opt.step([np.int64(1), 2 * y])
    with refused(opt, TypeError, "grads[0]", "got float"):
        opt.step([1.0, 2 * y])


def test_groups_have_options_of_their_own() -> None:
    a, b = np.ones(3), np.ones(3)
    opt = sp.SGD([{"params": a, "lr": 1.0}, {"params": [b], "weight_decay": 1.0, "l1": 2.0}], lr=0.5)
    opt.step([np.ones(3), [np.ones(3)]])
    np.testing.assert_array_equal(a, 0.0)
    np.testing.assert_array_equal(b, -1.0)
    assert [group["lr"] for group in opt.param_groups] == [1.0, 0.5] and opt.lr == 1.0
    opt.lr = 0.25
    assert [group["lr"] for group in opt.param_groups] == [0.25, 0.25]


def test_add_param_group() -> None:
    a, b, c = np.ones(3), np.ones(2, np.float32), np.ones(1)
    opt = sp.Adam({"a": a}, lr=0.5, weight_decay=0.0)
    opt.step({"a": np.ones(3)})
    for group, error, words in [
        ({"params": a}, ValueError, "overlaps"),
        ({"params": {"c": c, "a": a[1:]}}, ValueError, "params[1]['a']"),
        ({"params": [c, c]}, ValueError, "params[1][1]"),
        ({"params": []}, ValueError, "at least one"),
        ({"params": None}, TypeError, "NoneType"),
        ({"params": c, "beta": 1}, ValueError, "beta"),
        ({"params": c, 7: 1}, ValueError, "7"),
        ({"params": c, "lr": -1}, ValueError, "lr: expected"),
        ({"params": b, "eps": 1e-50}, ValueError, "eps: expected"),
        ({"param": c}, ValueError, "params"),
        (c, TypeError, "ndarray"),
        (None, TypeError, "NoneType"),
    ]:
        with refused(opt, error, words):
            opt.add_param_group(group)  # type: ignore[arg-type]
        opt.step({"a": None})
    opt.add_param_group({"params": b, "lr": 0.25})
    with refused(opt, TypeError, "sequence of 2 entries", "got dict"):
        opt.step({"a": np.ones(3)})
    with refused(opt, ValueError, "sequence of 2 entries", "got 1"):
        opt.step([{"a": np.ones(3)}])
    with refused(opt, TypeError, "grads[1]", "float32"):
        opt.step([{"a": np.ones(3)}, np.ones(2)])
    opt.step([{"a": np.ones(3)}, np.ones(2, np.float32)])
    np.testing.assert_allclose([a[0], b[0]], [0.0, 0.75], atol=1e-7)
    steps = [state["step"] for state in opt.state_dict()["state"].values()]
    assert steps == [2, 1]


def test_grads_of_the_wrong_structure() -> None:
    a, b, g = np.ones(2), np.ones(3), {"a": np.ones(2), "b": np.ones(3)}
    opt = sp.Adam({"a": a, "b": b})
    for grads, error, words in [
        ({"a": g["a"]}, ValueError, "expected a gradient for 'b'"),
        ({**g, "c": g["a"]}, ValueError, "got also ['c']"),
        ({**g, "a": g["b"]}, ValueError, "grads['a']: expected shape (2,), got (3,)"),
        ({"a": g["a"], "c": g["b"]}, ValueError, "'b'"),
        ([g["a"], g["b"]], TypeError, "expected a mapping"),
        (g["a"], TypeError, "expected a mapping"),
        (None, TypeError, "expected a mapping"),
        ({"a": [1.0, 1.0], "b": g["b"]}, TypeError, "grads['a']"),
        ({"a": 1.0, "b": g["b"]}, TypeError, "grads['a']"),
    ]:
        with refused(opt, error, "grads", words):
            opt.step(grads)

    opt = sp.Adam([a, b])
    for listed, error, words in [
        ([g["a"]], ValueError, "expected 2 gradients, got 1"),
        ([g["a"], g["b"], None], ValueError, "expected 2 gradients, got 3"),
        ([g["b"], g["a"]], ValueError, "grads[0]: expected shape (2,), got (3,)"),
        (g, TypeError, "sequence"),
        ({g["a"].size, g["b"].size}, TypeError, "sequence"),
        ((x for x in g.values()), TypeError, "sequence"),
        (np.ones((2, 2)), TypeError, "sequence"),
        ("ab", TypeError, "grads[0]"),
        (None, TypeError, "sequence"),
    ]:
        with refused(opt, error, "grads", words):
            opt.step(listed)


@pytest.mark.parametrize(
    ("params", "error", "words"),
    [
        ([], ValueError, "at least one array"),
        ({}, ValueError, "at least one array"),
        (iter(()), ValueError, "at least one array"),
        ([{"params": []}], ValueError, "at least one array"),
        (None, TypeError, "NoneType"),
        (1.0, TypeError, "float"),
        ("ab", TypeError, "params[0]"),
        ([1.0], TypeError, "params[0]"),
        ([np.ones(2), None], TypeError, "params[1]"),
        ({"w": [np.ones(2)]}, TypeError, "params['w']"),
        ([[np.ones(2)]], TypeError, "params[0]"),
        ([{"params": np.ones(2)}, np.ones(3)], TypeError, "param group"),
        ([{"w": np.ones(2)}], ValueError, "param group"),
        ([{"params": np.ones(2)}, {"lr": 1.0}], ValueError, "param group"),
        ([{"params": [{"params": np.ones(2)}]}], TypeError, "params[0][0]"),
        ([{"params": np.ones(2), "momentun": 0.9}], ValueError, "momentun"),
        ([{"params": np.ones(2), "max_norm": 1.0}], ValueError, "max_norm"),
    ],
)
def test_params_of_the_wrong_structure(params: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        sp.SGD(params)
    assert words in str(caught.value) and "expected" in str(caught.value)


def test_an_option_that_no_rule_has_is_refused() -> None:
    with pytest.raises(TypeError, match="beta"):
        sp.SGD(np.ones(2), beta=0.9)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="use Adam, SGD"):
        sp.Optimizer(np.ones(2), max_norm=None, nonfinite="propagate")


def test_a_replaced_parameter_is_noticed() -> None:
    params = {"a": np.ones(2), "b": np.ones(3)}
    a, g = params["a"], {"a": np.ones(2), "b": np.ones(3)}
    opt = sp.SGD(params)
    params["a"] = np.ones(2)
    with refused(opt, ValueError, "params['a']", "in place"):
        opt.step(g)
    del params["a"]
    with refused(opt, ValueError, "params['a']", "in place"):
        opt.step(g)
    params["a"] = a
    opt.step(g)
    params["c"] = np.ones(1)
    with refused(opt, ValueError, "got also ['c']"):
        opt.step(g | {"c": np.ones(1)})

    listed = [np.ones(2), np.ones(3)]
    opt = sp.SGD(listed)
    removed = listed.pop()
    with refused(opt, ValueError, "params[1]"):
        opt.step([np.ones(2), np.ones(3)])
    listed.append(removed)
    opt.step([np.ones(2), np.ones(3)])


def test_a_container_of_the_users_may_fail_or_change_what_it_gave() -> None:
    class Failing(Dots):
        def __getitem__(self, name: str) -> Any:
            if name == "b":
                raise RuntimeError("disk on fire")
            return super().__getitem__(name)

    class Shrinking(Dots):
        def __getitem__(self, name: str) -> Any:
            if name == "b":
                self.entries["a"].resize(1, refcheck=False)
            return super().__getitem__(name)

    opt = sp.Adam({"a": np.ones(1000), "b": np.ones(3)})
    grads = {"a": np.ones(1000), "b": np.ones(3)}
    with refused(opt, RuntimeError, "disk on fire"):
        opt.step(Failing(**grads))
    with refused(opt, ValueError, "grads", "resized"):
        opt.step(Shrinking(**grads))
    opt.step({"a": np.ones(1000), "b": np.ones(3)})


@every_variant
def test_a_tensor_without_a_gradient_lags(rule: Any, options: dict[str, Any]) -> None:
    (a, b), (alone_a, alone_b) = (([np.ones(3), np.full(4, 2.0)]) for _ in range(2))
    together = rule([a, b], lr=0.1, **options)
    opt_a, opt_b = rule(alone_a, lr=0.1, **options), rule(alone_b, lr=0.1, **options)
    rng = np.random.default_rng(0)
    for t in range(9):
        g_a = rng.standard_normal(3) if t % 3 else None
        g_b = rng.standard_normal(4) if t % 2 else None
        together.step([g_a, g_b])
        if g_a is not None:
            opt_a.step(g_a)
        if g_b is not None:
            opt_b.step(g_b)
    np.testing.assert_array_equal(a, alone_a)
    np.testing.assert_array_equal(b, alone_b)
    state = together.state_dict()["state"]
    assert (state[0]["step"], state[1]["step"], together.steps) == (6, 4, 9)


# ---------------------------------------------------------------------------------------------
# Gradients: scale, clipping, values that are not finite


@pytest.mark.parametrize("scale", [0.5, -2, 0, np.float32(3), 1e-300])
@both_dtypes
def test_grad_scale(dtype: Any, scale: Any) -> None:
    w, g = np.ones(5, dtype), np.linspace(-1, 1, 5).astype(dtype)
    expected = by_reference(sp.Adam, w.copy(), [g], lr=0.1, scale=float(scale))
    sp.Adam(w, lr=0.1).step(g, scale)
    np.testing.assert_array_equal(w, expected, strict=True)


@pytest.mark.parametrize(
    ("scale", "error"),
    [(math.nan, ValueError), (math.inf, ValueError), (10**400, ValueError)]
    + [(x, TypeError) for x in ("1", None, 1j, [1.0])],
)
def test_grad_scale_that_is_no_finite_number(scale: Any, error: type[Exception]) -> None:
    opt = sp.Adam(np.ones(2))
    with refused(opt, error, "grad_scale: expected", "got"):
        opt.step(np.ones(2), grad_scale=scale)


@pytest.mark.parametrize("scale", [1.0, 0.5, -4.0])
@pytest.mark.parametrize("max_norm", [0.1, 3.0, 1e9])
@both_dtypes
def test_max_norm_clips_all_groups_together(dtype: Any, max_norm: float, scale: float) -> None:
    params, grads = make_arrays(dtype), make_arrays(dtype, seed=1)
    starts = [p.copy(order="K") for p in params]
    opt = sp.SGD([{"params": params[:2]}, {"params": params[2:], "maximize": True}], lr=1.0, max_norm=max_norm)
    opt.step([grads[:2], grads[2:]], scale)
    norm = abs(scale) * reference.global_norm(grads)
    assert opt.last_norm == norm
    assert norm == pytest.approx(abs(scale) * np.linalg.norm(np.concatenate([g.ravel() for g in grads])))
    factor = min(1.0, max_norm / (norm + 1e-6)) * scale
    for i, (p, start, g) in enumerate(zip(params, starts, grads, strict=True)):
        expected = by_reference(sp.SGD, start, [g], lr=1.0, scale=factor, maximize=i >= 2)
        np.testing.assert_array_equal(p, expected, strict=True)


def test_max_norm_leaves_out_what_has_no_gradient() -> None:
    opt = sp.SGD([np.ones(2), np.ones(2)], max_norm=1.0)
    opt.step([None, np.array([3.0, 4.0])])
    assert opt.last_norm == 5.0
    opt.step([None, None])
    assert opt.last_norm == 0.0 and opt.steps == 2


def test_max_value_clips_after_the_scale_and_before_the_penalties() -> None:
    w = np.array([1.0, 1.0, -1.0])
    sp.SGD(w, lr=1.0, max_value=2.0, weight_decay=0.5, l1=0.25).step(np.array([1.0, -0.25, 0.5]), 4.0)
    np.testing.assert_array_equal(w, [1 - 2 - 0.75, 1 + 1 - 0.75, -1 - 2 + 0.75])


@pytest.mark.parametrize("size", [5, 200_000])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@both_dtypes
def test_gradients_that_are_not_finite(dtype: Any, bad: float, size: int) -> None:
    def made(mode: str) -> tuple[sp.Optimizer, list[Array]]:
        params = [np.ones(3, dtype), np.ones(size, dtype)]
        opt = sp.Adam({"a": params[0], "b": params[1]}, nonfinite=mode)
        opt.step({"a": np.ones(3, dtype), "b": np.ones(size, dtype)})
        return opt, params

    grads = {"a": np.ones(3, dtype), "b": np.ones(size, dtype)}
    grads["b"][size - 2] = bad

    opt, _ = made("skip")
    before = everything(opt)
    opt.step(grads)
    assert everything(opt) == before and opt.last_norm is not None and not math.isfinite(opt.last_norm)

    opt, _ = made("raise")
    with refused(opt, FloatingPointError, "params['b']", "not finite"):
        opt.step(grads)

    opt, params = made("propagate")
    opt.step(grads)
    assert opt.steps == 2 and opt.last_norm is None
    assert np.isfinite(params[0]).all() and np.flatnonzero(~np.isfinite(params[1])).tolist() == [size - 2]


def test_large_finite_gradients_are_finite() -> None:
    for dtype, value in [(np.float32, 3e38), (np.float64, 1e308)]:
        w = np.ones(2, dtype)
        opt = sp.SGD(w, lr=1.0, max_norm=1.0, nonfinite="raise")
        opt.step(np.full(2, value, dtype))
        np.testing.assert_allclose(w, 1 - math.sqrt(0.5), rtol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("grad_scale", [0.0, -2.0])
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_the_gradient_that_is_not_finite_is_named(max_norm: float | None, grad_scale: float, bad: float) -> None:
    params: dict[str, Array] = {"a": np.ones(2, np.float32), "b": np.ones(2), "c": np.ones(2, np.float32)}
    opt = sp.SGD(params, lr=1.0, max_norm=max_norm, nonfinite="raise")
    for name in params:
        grads = {key: np.array([1, bad if key == name else 1], p.dtype) for key, p in params.items()}
        with refused(opt, FloatingPointError, f"the gradient of params['{name}'] has a value that is not finite"):
            opt.step(grads, grad_scale=grad_scale)


def test_gradients_that_overflow_when_scaled_are_not_finite() -> None:
    p, q, grad = np.ones(2, np.float32), np.ones(2), np.array([1e20, 2], np.float32)
    opt = sp.SGD({"p": p, "q": q}, lr=1.0, nonfinite="raise")
    with refused(opt, FloatingPointError, "params['p'], scaled, has a value that is not finite"):
        opt.step({"p": grad, "q": None}, grad_scale=-1e20)
    opt.step({"p": None, "q": np.full(2, 1e200)}, grad_scale=1e100)
    with refused(opt, FloatingPointError, "params['q'], scaled, has a value that is not finite"):
        opt.step({"p": None, "q": np.full(2, 1e200)}, grad_scale=1e200)
    assert (p == 1).all() and (q == 1 - 1e300).all()
    unscaled = sp.SGD(p, lr=1e-38, nonfinite="skip")
    unscaled.step(np.full(2, 3e38, np.float32))  # finite, though its norm is not in the range of float32
    unscaled.step(np.full(2, 1e38, np.float32), grad_scale=3.0)  # nor is this one's
    assert unscaled.steps == 2 and (p < -4).all()
    with_mask = sp.SGD(p, lr=1e-38, nonfinite="raise")
    with_mask.set_masks(np.array([False, True]))
    with_mask.step(grad, grad_scale=1e20)  # what is masked counts nothing
    skips = sp.SGD(p, nonfinite="skip")
    skips.step(grad, grad_scale=1e20)
    assert skips.steps == 0 and skips.last_norm == pytest.approx(1e40)


@pytest.mark.parametrize("mode", ["ignore", None, True, 3, ""])
def test_nonfinite_has_three_values(mode: Any) -> None:
    with pytest.raises(ValueError, match='nonfinite: expected "propagate", "skip" or "raise", got'):
        sp.SGD(np.ones(2), nonfinite=mode)


# ---------------------------------------------------------------------------------------------
# Schedules


def test_a_schedule_is_asked_for_the_number_of_finished_steps() -> None:
    asked: list[int] = []

    def schedule(step: int) -> float:
        asked.append(step)
        return 1.0 if step == 0 else 0.5

    w = np.zeros(1)
    opt = sp.SGD(w, lr=schedule, nonfinite="skip")
    opt.step(np.ones(1))
    opt.step(np.array([math.nan]))
    with refused(opt, ValueError, "shape"):
        opt.step(np.ones(2))
    opt.step(np.ones(1))
    assert w == -1.5 and set(asked) == {0, 1} and opt.steps == 2
    assert opt.lr == 0.5
    opt.lr = 0.25
    assert opt.lr == opt.param_groups[0]["lr"] == 0.25


def test_schedules_by_group() -> None:
    a, b = np.zeros(1), np.zeros(1)
    groups = [{"params": a, "lr": lambda step: step + 1.0}, {"params": b, "lr": lambda step: np.float32(0.5)}]
    opt = sp.SGD(groups, lr=1.0)
    for _ in range(3):
        opt.step([np.ones(1), np.ones(1)])
    assert a == -6 and b == -1.5 and opt.lr == 4.0


@pytest.mark.parametrize(
    ("rate", "error"),
    [(math.nan, ValueError), (math.inf, ValueError), (-1.0, ValueError), (1e39, ValueError), (10**400, ValueError)]
    + [(x, TypeError) for x in (None, "0.1", 1j, [0.1])],
)
def test_a_schedule_that_gives_no_rate(rate: Any, error: type[Exception]) -> None:
    groups = [{"params": np.ones(2)}, {"params": np.ones(2, np.float32), "lr": lambda step: rate if step else 0.1}]
    opt = sp.Adam(groups)
    grads = [np.ones(2), np.ones(2, np.float32)]
    opt.step(grads)
    with refused(opt, error, "lr: ", "step 1"):
        opt.step(grads)


def test_a_schedule_judged_in_the_dtype_of_its_parameters() -> None:
    opt = sp.SGD(np.zeros(1), lr=lambda step: 1e39)
    opt.step(np.ones(1))
    assert opt.param_groups[0]["params"][0] == -1e39


def test_a_schedule_that_fails_or_uses_its_optimizer() -> None:
    w, g = np.ones(2), np.ones(2)
    inner: list[Callable[[], Any]] = []

    def schedule(step: int) -> float:
        if step == 1:
            inner[-1]()
        return 0.1

    opt = sp.Adam(w, lr=schedule)
    opt.step(g)

    def fail() -> None:
        raise KeyError("no such rate")

    inner.append(fail)
    with refused(opt, KeyError, "no such rate"):
        opt.step(g)
    saved = sp.Adam(np.ones(2)).state_dict()
    for use in (
        lambda: opt.step(g),
        lambda: opt._core.snapshot(),
        lambda: opt.load_state_dict(saved),
        lambda: opt.add_param_group({"params": np.ones(1)}),
        lambda: opt.param_groups[0].update(lr=0.5),
    ):
        inner.append(use)
        with refused(opt, RuntimeError, "middle of a step"):
            opt.step(g)
    inner.append(lambda: opt.steps)
    opt.step(g)
    assert opt.steps == 2


def test_a_schedule_cannot_pull_the_gradient_from_under_a_step() -> None:
    g = np.ones(1000)

    def schedule(step: int) -> float:
        g.resize(10, refcheck=False)
        return 0.1

    opt = sp.SGD(np.ones(1000), lr=schedule)
    with refused(opt, ValueError, "grads", "resized"):
        opt.step(g)


# ---------------------------------------------------------------------------------------------
# Options: one table for every option of every rule

PROBABILITY, POSITIVE, NOT_NEGATIVE = "[0, 1)", "(0, inf)", "[0, inf)"
RANGES = {
    "lr": NOT_NEGATIVE, "alpha": PROBABILITY, "beta": PROBABILITY, "dampening": PROBABILITY, "eps": POSITIVE,
    "initial_accumulator_value": NOT_NEGATIVE, "l1": NOT_NEGATIVE, "l2": NOT_NEGATIVE, "lr_decay": NOT_NEGATIVE,
    "max_value": POSITIVE, "momentum": PROBABILITY, "momentum_decay": NOT_NEGATIVE, "weight_decay": NOT_NEGATIVE,
}  # fmt: skip
FLAGS = {"amsgrad", "centered", "decoupled_weight_decay", "epsilon_hat", "eps_inside_sqrt", "lr_in_velocity"}
FLAGS |= {"maximize", "nesterov"}
FOR_ALL = {"max_norm", "nonfinite", "state_dtype", "seed", "master_weights"}
BAD = {
    PROBABILITY: [-0.1, -5e-324, 1.0, 1, 2.0, 10**400],
    POSITIVE: [0.0, 0, -1.0, -5e-324, 10**400],
    NOT_NEGATIVE: [-1.0, -5e-324, -1, 10**400, -(10**400)],
}
BAD_IN_FLOAT32 = {PROBABILITY: [0.99999999999], POSITIVE: [1e-50, 1e39], NOT_NEGATIVE: [1e39]}
GOOD: dict[str, list[Any]] = {
    PROBABILITY: [0, 0.5, np.float32(0.25), 0.999],
    POSITIVE: [1e-30, 1, 3e38, np.float64(2)],
    NOT_NEGATIVE: [0, 0.0, 1, 3e38, 1e-50, np.int64(3)],
}


def options_of(rule: type[sp.Optimizer]) -> set[str]:
    return set(inspect.signature(rule).parameters) - {"params"} - FOR_ALL


def cases_of(name: str) -> Sequence[tuple[Any, type[Exception], bool]]:
    """Values that the option refuses: (value, error, whether only beside float32 parameters)."""
    if name in FLAGS:
        return [(x, TypeError, False) for x in (0, 1, None, "True", 0.5)]
    if name == "betas":
        pairs = [(x, 0.9) for x in BAD[PROBABILITY]] + [(0.9, x) for x in (*BAD[PROBABILITY], math.nan, math.inf)]
        wrong: list[Any] = [(0.9,), (), (0.9, 0.9, 0.9)]
        types: list[Any] = [0.9, None, "ab", (0.9, "x"), (None, 0.9), np.array([0.9, 0.9]), (True, 0.9), {0.1, 0.2}]
        return (
            [(x, ValueError, False) for x in (*pairs, *wrong)]
            + [(x, TypeError, False) for x in types]
            + [((0.99999999999, 0.9), ValueError, True), ((0.9, 0.99999999999), ValueError, True)]
        )
    types = ["1", True, 1j, [0.5], np.array(0.5), object()] + [None] * (name != "max_value")
    return (
        [(x, ValueError, False) for x in (*BAD[RANGES[name]], math.nan, math.inf, -math.inf)]
        + [(x, TypeError, False) for x in types]
        + [(x, ValueError, True) for x in BAD_IN_FLOAT32[RANGES[name]]]
    )


def test_the_table_has_every_option() -> None:
    assert set().union(*map(options_of, RULES)) == {*RANGES, *FLAGS, "betas"}
    assert {rule.__name__ for rule in RULES} == set(reference.RULES)


@every_rule
def test_an_option_out_of_range_is_refused_everywhere(rule: Any) -> None:
    w = np.ones(2)
    for name in sorted(options_of(rule)):
        for value, error, in_float32 in cases_of(name):
            p = np.ones(2, np.float32 if in_float32 else np.float64)
            ways: list[tuple[Any, dict[str, Any]]] = [
                (p, {name: value}),
                ([{"params": w}, {"params": p, name: value}], {}),
            ]
            for params, options in ways:
                with pytest.raises(error) as caught:
                    rule(params, **options)
                message = str(caught.value)
                assert message.startswith(f"{name}: expected") and "got" in message
                assert ("float32" in message) == in_float32, message
            opt = rule([{"params": w}, {"params": p}])
            opt.step([np.ones(2), np.ones_like(p)])
            with refused(opt, error, f"{name}: expected"):
                opt.param_groups[1][name] = value
            if callable(value):
                continue
            saved = opt.state_dict()
            saved["param_groups"][1][name] = value
            with refused(opt, error, f"{name}: expected"):
                opt.load_state_dict(saved)
            if name == "lr":
                with refused(opt, error, "lr: expected"):
                    opt.lr = value


@every_rule
def test_an_option_in_range_is_taken(rule: Any) -> None:
    for name in options_of(rule) & set(RANGES):
        beside = {"momentum": 0.5} if name == "dampening" else {}
        for value in GOOD[RANGES[name]]:
            opt = rule(np.ones(2, np.float32), **{name: value, **beside})
            assert opt.param_groups[0][name] == float(value) and type(opt.param_groups[0][name]) is float
            opt.step(np.ones(2, np.float32))
        for value in BAD_IN_FLOAT32[RANGES[name]]:
            assert rule(np.ones(2), **{name: value, **beside}).param_groups[0][name] == value
    for name in options_of(rule) & FLAGS - {"nesterov"}:
        assert rule(np.ones(2), **{name: np.bool_(True)}).param_groups[0][name] is True


@pytest.mark.parametrize("max_norm", [0, -1.0, math.nan, math.inf, "1", True, [1.0]])
def test_max_norm_out_of_range(max_norm: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"max_norm: expected .* got"):
        sp.SGD(np.ones(2), max_norm=max_norm)


@given(name=st.sampled_from(sorted(RANGES)), value=st.floats(), narrow=st.booleans())
def test_any_number_is_taken_or_refused_by_its_range_after_rounding(name: str, value: float, narrow: bool) -> None:
    dtype = np.float32 if narrow else np.float64
    rule = next(rule for rule in RULES if name in options_of(rule))
    with np.errstate(over="ignore", under="ignore"):
        x = float(dtype(value))
    in_range = x > 0 if RANGES[name] == POSITIVE else value >= 0
    valid = in_range and x < (1 if RANGES[name] == PROBABILITY else math.inf)
    if valid:
        rule(np.ones(1, dtype), **{name: value})
    else:
        with pytest.raises(ValueError, match=f"{name}: expected"):
            rule(np.ones(1, dtype), **{name: value})


def test_options_that_do_not_go_together() -> None:
    wrong: list[dict[str, Any]] = [
        {"nesterov": True},
        {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
        {"lr_in_velocity": True, "momentum": 0.9, "dampening": 0.1},
    ]
    for options in wrong:
        with pytest.raises(ValueError, match=r"expected .*dampening = 0"):
            sp.SGD(np.ones(2), **options)
    opt = sp.SGD(np.ones(2), momentum=0.9, nesterov=True)
    with refused(opt, ValueError, "nesterov: expected"):
        opt.param_groups[0]["dampening"] = 0.1


def test_what_a_rule_keeps_is_fixed_when_it_is_made() -> None:
    for opt, name, value in [
        (sp.SGD(np.ones(2)), "momentum", 0.9),
        (sp.SGD(np.ones(2), momentum=0.9), "momentum", 0.0),
        (sp.RMSprop(np.ones(2)), "centered", True),
        (sp.Adam(np.ones(2)), "amsgrad", True),
    ]:
        opt.step(np.ones(2))
        with refused(opt, ValueError, "expected", "got", "make a new optimizer"):
            opt.param_groups[0][name] = value
        saved = opt.state_dict()
        saved["param_groups"][0][name] = value
        with refused(opt, ValueError, "expected", "got", "make a new optimizer"):
            opt.load_state_dict(saved)


def test_assigned_options_count_from_the_next_step() -> None:
    w = np.zeros(1)
    opt = sp.SGD(w, lr=1.0)
    group = opt.param_groups[0]
    opt.step(np.ones(1))
    group.update(lr=0.5, maximize=True)
    opt.step(np.ones(1))
    assert w == -0.5
    assert group["params"] is w and "lr" in group and len(group) == 1 + len(options_of(sp.SGD))
    for name in ("params", "lr_", "beta"):
        before = everything(opt)
        with pytest.raises(KeyError, match=name):
            group[name] = 1.0
        assert everything(opt) == before
    with refused(opt, TypeError, "cannot be removed"):
        del group["lr"]


# ---------------------------------------------------------------------------------------------
# Saved states, copies, pickles


def clone(opt: sp.Optimizer, arrays: list[Array]) -> tuple[sp.Optimizer, list[Array]]:
    """Another optimizer of the same rule, options and parameters, its state loaded from a state_dict."""
    copies = [x.copy(order="K") for x in arrays]
    options = {k: v for k, v in opt.param_groups[0].items() if k != "params"}
    rule: Any = type(opt)
    new: sp.Optimizer = rule(copies, **options)
    new.load_state_dict(pickle.loads(pickle.dumps(opt.state_dict())))
    return new, copies


def deep_copied(opt: sp.Optimizer, arrays: list[Array]) -> tuple[sp.Optimizer, list[Array]]:
    new = copy.deepcopy(opt)
    return new, new.param_groups[0]["params"]


def pickled(opt: sp.Optimizer, arrays: list[Array]) -> tuple[sp.Optimizer, list[Array]]:
    new = pickle.loads(pickle.dumps(opt))
    return new, new.param_groups[0]["params"]


@every_variant
@both_dtypes
@pytest.mark.parametrize("way", [clone, deep_copied, pickled])
def test_a_copy_goes_on_with_the_same_bits(rule: Any, options: dict[str, Any], dtype: Any, way: Any) -> None:
    arrays = make_arrays(dtype)
    opt = rule(arrays, **options)
    for seed in range(1, 4):
        opt.step([*make_arrays(dtype, seed)[:-1], None])
    other, copies = way(opt, arrays)
    frozen_there = everything(other)
    for seed in range(4, 7):
        opt.step(make_arrays(dtype, seed))
    assert everything(other) == frozen_there  # independent
    for seed in range(4, 7):
        other.step(make_arrays(dtype, seed))
    assert frozen(copies) == frozen(arrays)
    assert frozen(other.state_dict()) == frozen(opt.state_dict())


def test_copies_keep_groups_clipping_and_schedules() -> None:
    a, b = np.ones(3), np.ones(2)
    opt = sp.SGD([{"params": {"a": a}}, {"params": b, "lr": 0.25}], lr=sp.schedules.constant(0.5), max_norm=1.0,
                 nonfinite="raise")  # fmt: skip
    opt.step([{"a": np.ones(3)}, np.ones(2)])
    new = copy.deepcopy(opt)
    assert repr(new) == repr(opt) and new.steps == 1
    for each in (opt, new):
        with refused(each, FloatingPointError, "params[0]['a']"):
            each.step([{"a": np.full(3, math.nan)}, None])
        each.step([{"a": np.ones(3)}, np.ones(2)])
    np.testing.assert_array_equal(new.param_groups[1]["params"], b)
    assert new.last_norm == opt.last_norm == pytest.approx(math.sqrt(5))
    new.param_groups[0]["lr"] = 0.1
    assert callable(opt.param_groups[0]["lr"])


def test_a_copy_of_a_model_and_its_optimizer_stays_together() -> None:
    params = {"w": np.ones(2)}
    params_2, opt_2 = copy.deepcopy((params, sp.SGD(params, lr=1.0)))
    opt_2.step({"w": np.ones(2)})
    assert params["w"][0] == 1 and params_2["w"][0] == 0


def test_a_schedule_stays_and_goes_on_at_the_loaded_step() -> None:
    opt = sp.SGD(np.zeros(1), lr=lambda step: 1.0 + step)
    for _ in range(3):
        opt.step(np.ones(1))
    saved = opt.state_dict()
    assert saved["param_groups"][0]["lr"] == 4.0
    scheduled, fixed = sp.SGD(np.zeros(1), lr=lambda step: 10.0 + step), sp.SGD(np.zeros(1))
    scheduled.load_state_dict(saved)
    fixed.load_state_dict(saved)
    assert scheduled.lr == 13.0 and fixed.lr == 4.0 and fixed.steps == 3


def test_a_state_dict_is_plain_and_a_copy() -> None:
    opt = sp.NAdam([np.ones(2), np.ones(3)])
    opt.step([np.ones(2), None])
    saved = opt.state_dict()
    assert list(saved) == ["steps", "state", "param_groups"]
    assert saved["param_groups"][0]["params"] == [0, 1]
    assert list(saved["state"][0]) == ["step", "mu_product", "exp_avg", "exp_avg_sq"]
    assert saved["state"][1] | {"exp_avg": 0, "exp_avg_sq": 0} == {
        "step": 0, "mu_product": 1.0, "exp_avg": 0, "exp_avg_sq": 0,
    }  # fmt: skip
    before = everything(opt)
    saved["state"][0]["exp_avg"][:] = 7
    assert everything(opt) == before


@every_variant
def test_state_in_the_callers_arrays(rule: Any, options: dict[str, Any], tmp_path: Path) -> None:
    arrays, expected = make_arrays(np.float32), make_arrays(np.float32)
    opt, usual = rule(arrays, **options), rule(expected, **options)
    saved, mine = opt.state_dict(copy=False), []
    for i, state in saved["state"].items():
        for name, x in state.items():
            if isinstance(x, np.ndarray):
                file = tmp_path / f"{i}.{name}.npy"
                state[name] = np.lib.format.open_memmap(file, "w+", x.dtype, x.shape, not x.flags.c_contiguous)
                state[name][...] = x
                mine.append(state[name])
    opt.load_state_dict(saved, copy=False)
    for seed in range(1, 4):
        opt.step(make_arrays(np.float32, seed))
        usual.step(make_arrays(np.float32, seed))
    assert frozen(arrays) == frozen(expected) and frozen(opt.state_dict()) == frozen(usual.state_dict())
    inside = [x for x in opt.state_dict(copy=False)["state"].values() for x in x.values() if isinstance(x, np.ndarray)]
    assert all(a is b for a, b in zip(inside, mine, strict=True))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p, m: np.zeros(4), TypeError, "float32, got float64"),
        (lambda p, m: np.zeros(3, np.float32), ValueError, "expected shape"),
        (lambda p, m: np.frombuffer(bytes(16), np.float32), ValueError, "expected a writeable array"),
        (lambda p, m: np.zeros(8, np.float32)[::2], ValueError, "expected a contiguous array"),
        (lambda p, m: p, ValueError, "overlaps params"),
        (lambda p, m: m, ValueError, "overlaps params"),  # the other state's
    ],
)
def test_state_arrays_are_taken_over_or_refused(make: Any, error: Any, message: str) -> None:
    p = np.ones(4, np.float32)
    opt = sp.Adam(p)
    opt.step(np.ones(4, np.float32))
    saved = opt.state_dict(copy=False)
    m = saved["state"][0]["exp_avg"]
    before = everything(opt)
    wrong = edit(saved, ("state", 0, "exp_avg"), m)  # but for `exp_avg` copies
    wrong["state"][0]["exp_avg_sq"] = make(p, m)
    with refused(opt, error, message):
        opt.load_state_dict(wrong, copy=False)
    assert everything(opt) == before
    with pytest.raises(ValueError, match="cannot resize"):
        m.resize(1000, refcheck=False)


def edit(saved: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of the saved state with one entry replaced, or removed if value is `edit`."""
    saved = copy.deepcopy(saved)
    inner = saved
    for key in path[:-1]:
        inner = inner[key]
    if value is edit:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return saved


@pytest.mark.parametrize(
    ("path", "value", "error"),
    [
        (("steps",), edit, ValueError),
        (("state",), edit, ValueError),
        (("param_groups",), edit, ValueError),
        (("extra",), 1, ValueError),
        (("steps",), -1, ValueError),
        (("steps",), 2**63, ValueError),
        (("steps",), 2**53 + 1, ValueError),
        (("steps",), "3", TypeError),
        (("steps",), 3.0, TypeError),
        (("steps",), None, TypeError),
        (("state",), "state", TypeError),
        (("state",), [], TypeError),
        (("state",), None, TypeError),
        (("state",), {}, ValueError),
        (("state", 0), edit, ValueError),
        (("state", 2), {}, ValueError),
        (("state", "0"), {}, ValueError),
        (("state", 1), {}, ValueError),
        (("state", 1), None, TypeError),
        (("state", 1), "abc", TypeError),
        (("state", 1), [1], TypeError),
        (("state", 1, "step"), edit, ValueError),
        (("state", 1, "step"), -1, ValueError),
        (("state", 1, "step"), 2**63 - 1, ValueError),
        (("state", 1, "step"), "3", TypeError),
        (("state", 1, "step"), 2.0, TypeError),
        (("state", 1, "step"), np.ones(2), TypeError),
        (("state", 1, "mu_product"), edit, ValueError),
        (("state", 1, "mu_product"), "0.5", TypeError),
        (("state", 1, "mu_product"), math.nan, ValueError),
        (("state", 1, "mu_product"), -0.5, ValueError),
        (("state", 1, "mu_product"), 1.5, ValueError),
        (("state", 1, "exp_avg"), edit, ValueError),
        (("state", 1, "exp_avg"), None, TypeError),
        (("state", 1, "exp_avg"), "abc", TypeError),
        (("state", 1, "exp_avg"), [0.0] * 6, TypeError),
        (("state", 1, "exp_avg"), np.zeros((2, 3)), TypeError),
        (("state", 1, "exp_avg"), np.zeros((2, 3), np.float16), TypeError),
        (("state", 1, "exp_avg"), np.zeros((2, 3), np.int32), TypeError),
        (("state", 1, "exp_avg"), np.zeros((3, 2), np.float32), ValueError),
        (("state", 1, "exp_avg"), np.zeros(6, np.float32), ValueError),
        (("state", 1, "exp_avg"), np.zeros((3, 2), np.float32).T, ValueError),
        (("state", 1, "exp_avg"), np.zeros((2, 6), np.float32)[:, ::2], ValueError),
        (("state", 1, "exp_avg_sq"), np.zeros((2, 3), np.float32).astype(">f4"), TypeError),
        (("state", 1, "max_exp_avg_sq"), np.zeros((2, 3), np.float32), ValueError),
        (("param_groups",), [], ValueError),
        (("param_groups",), "a", TypeError),
        (("param_groups",), {}, ValueError),
        (("param_groups",), None, ValueError),
        (("param_groups", 0), None, TypeError),
        (("param_groups", 0), "params", TypeError),
        (("param_groups", 0), {}, ValueError),
        (("param_groups", 0, "lr"), edit, ValueError),
        (("param_groups", 0, "params"), edit, ValueError),
        (("param_groups", 0, "params"), [0], ValueError),
        (("param_groups", 0, "params"), 2, ValueError),
        (("param_groups", 0, "momentum"), 0.9, ValueError),
        (("param_groups", 0, "lr"), "fast", TypeError),
        (("param_groups", 0, "maximize"), "False", TypeError),
    ],
)
def test_a_state_that_does_not_fit_is_refused_whole(path: Any, value: Any, error: type[Exception]) -> None:
    opt = sp.NAdam([np.ones(3), np.ones((2, 3), np.float32)], lr=0.1)
    opt.step([np.ones(3), np.ones((2, 3), np.float32)])
    other = sp.NAdam([np.ones(3), np.ones((2, 3), np.float32)], lr=0.2)
    for _ in range(2):
        other.step([np.full(3, 0.5), np.full((2, 3), 0.5, np.float32)])
    saved = edit(other.state_dict(), path, value)
    with refused(opt, error, "expected", "got"):
        opt.load_state_dict(saved)
    opt.load_state_dict(other.state_dict())
    assert opt.steps == 2 and opt.lr == 0.2


@pytest.mark.parametrize("saved", [None, 1, "state", [], ["steps", "state", "param_groups"]])
def test_a_state_that_is_no_mapping(saved: Any) -> None:
    opt = sp.SGD(np.ones(2))
    with refused(opt, TypeError, "state_dict: expected a mapping, got"):
        opt.load_state_dict(saved)


def test_a_state_of_other_groups_is_refused() -> None:
    one, two = sp.Adam([np.ones(2), np.ones(2)]), sp.Adam([{"params": np.ones(2)}, {"params": np.ones(2)}])
    for opt, other in [(one, two), (two, one)]:
        with refused(opt, ValueError, "param_groups: expected"):
            opt.load_state_dict(other.state_dict())
    with refused(one, ValueError, "expected the keys"):
        one.load_state_dict(sp.AdamW([np.ones(2), np.ones(2)]).state_dict())


# ---------------------------------------------------------------------------------------------
# The rest


def test_gradients_that_became_state_are_refused() -> None:
    w, g = np.zeros(4), np.full(4, 3.0)
    opt = sp.Adam(w)
    opt.step(g)
    saved = opt.state_dict(copy=False)
    saved["state"][0]["exp_avg_sq"] = g
    opt.load_state_dict(saved, copy=False)
    with pytest.raises(ValueError, match="grads: expected memory of its own"):
        opt.step(g)


def test_repr_says_what_it_is() -> None:
    opt = sp.AdamW({"w": np.ones((10, 200)), "b": np.ones(3, np.float32)}, lr=0.5, max_norm=2.0)
    text = repr(opt)
    assert text.startswith("AdamW(lr=0.5, betas=(0.9, 0.999)")
    for part in ("max_norm=2.0", "2 arrays", "2,003 elements", "float32/float64", "step 0"):
        assert part in text
    opt.step({"w": np.ones((10, 200)), "b": None})
    opt.add_param_group({"params": np.ones(1)})
    assert "step 1" in repr(opt) and "groups=2" in repr(opt)
    assert "<2 arrays>" in repr(opt.param_groups[0])


def test_a_core_that_was_never_initialised_is_refused() -> None:
    core: Any = sp.SGD._core_class
    with pytest.raises(TypeError, match="__init__"):
        core.__new__(core).step([], 1.0)


@every_variant
def test_nothing_to_do_is_a_step(rule: Any, options: dict[str, Any]) -> None:
    for params, grads in [(np.empty(0), np.empty(0)), ([np.ones(2)], [None]), (np.empty((3, 0)), None)]:
        opt = rule(params, max_norm=1.0, **options)
        opt.step(grads)
        assert opt.steps == 1 and opt.last_norm == 0.0


def test_an_optimizer_keeps_its_parameters_alive() -> None:
    opt = sp.SGD((np.ones(10_000) for _ in range(2)), lr=1.0)
    opt.step([np.ones(10_000)] * 2)
    for p in opt.param_groups[0]["params"]:
        np.testing.assert_array_equal(p, 0.0)


@every_variant
@both_dtypes
def test_steps_do_not_depend_on_where_arrays_begin(rule: Any, options: dict[str, Any], dtype: Any) -> None:
    n, line = 2061, 64 // np.dtype(dtype).itemsize  # large enough for a step that begins with a cache line
    rng = np.random.default_rng(0)
    start, gradient = (rng.normal(size=n).astype(dtype) for _ in range(2))
    ends = set()
    for offset in range(0, line, 3):
        p, g = (np.empty(n + line, dtype)[at : at + n] for at in (offset, line - offset))
        p[...], g[...] = start, gradient
        optimizer = rule(p, **options)
        for _ in range(3):
            optimizer.step(g)
        ends.add(frozen(p))
    assert len(ends) == 1
