"""Every kernel gives its formula's bits: the whole table of cases, and properties that hold for any data."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import steepest as sp
from steepest import _core, optim, reference, verify
from steepest._cases import DTYPES, KERNELS, PAIRS, optimizers, ulps
from steepest._cases.data import pairs, special_values

pytestmark = pytest.mark.kernels

Array = NDArray[Any]
ROOT = Path(__file__).parents[1]
CLASSES: dict[str, Any] = {
    name: value
    for name, value in vars(optim).items()
    if inspect.isclass(value) and issubclass(value, optim.Optimizer) and value is not optim.Optimizer
}
MAKE: dict[str, dict[str, Any]] = {  # a variant with all the state that the rule can have
    "SGD": {"momentum": 0.9},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Adam": {"amsgrad": True},
    "AdamW": {"amsgrad": True},
}
STORAGE = {"state_dtype": None, "seed": 0, "master_weights": "split"}  # see test_low_precision.py
parametrize_rules = pytest.mark.parametrize("rule", reference.RULES)
parametrize_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def state_of(optimizer: sp.Optimizer) -> list[dict[str, Any]]:
    return list(optimizer.state_dict()["state"].values())


def assert_same(actual: Array, expected: Array) -> None:
    assert ulps(actual, expected) == (0, 0)


# ---------------------------------------------------------------------------------------------
# The table


@pytest.mark.parametrize(("kernel", "dtype"), PAIRS, ids=str)
def test_every_case_has_the_bits_of_its_formula(kernel: str, dtype: Any) -> None:
    """On every ISA, and among threads; `verify` does the same with every engine and number of threads."""
    isas = _core.build_info()["isas"]
    settings = [*(verify.Setting(isa, "pool", 1) for isa in isas), verify.Setting(isas[-1], "pool", 3)]
    rows, _ = verify.check(kernel, dtype, settings)
    assert rows.keys() == set(isas)
    assert all(row.cases > 20 for row in rows.values())
    assert [violation for row in rows.values() for violation in row.violations] == []


@parametrize_rules
def test_the_table_has_every_option_of_a_rule(rule: str) -> None:
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(CLASSES[rule]).parameters.items()
        if name not in ("params", "lr", "nonfinite", *STORAGE)
    }
    for quick in (False, True):
        seen = {
            name
            for options in optimizers.options_of(rule, quick)
            for name, value in options.items()
            if name not in defaults or value != defaults[name]
        }
        assert seen == {*defaults, "grad_scale", "masked"}


# ---------------------------------------------------------------------------------------------
# Every place that knows of a kernel knows of all of them


def kernel_fields(struct: str) -> list[str]:
    """The function pointers of a struct in kernels.hpp."""
    text = (ROOT / "cpp/kernels/kernels.hpp").read_text()
    body = re.search(rf"struct {struct} {{(.*?)^}};", text, re.DOTALL | re.MULTILINE)
    assert body is not None
    declared = re.sub(r"using \w+ =.*?;|template <.*?>|//.*?$", "", body[1], flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"\(\*(\w+)\)\(", declared) + re.findall(r"^ +\w+(?:<.*>)? (\w+);$", declared, re.MULTILINE)


def stubs() -> tuple[set[str], set[str]]:
    """The classes and the functions of _core.pyi."""
    body = ast.parse((ROOT / "python/steepest/_core.pyi").read_text()).body
    classes = {node.name for node in body if isinstance(node, ast.ClassDef)}
    return classes, {node.name for node in body if isinstance(node, ast.FunctionDef)}


def test_every_rule_has_its_six_places() -> None:
    compiled = {
        name for name, value in vars(_core).items() if inspect.isclass(value) and issubclass(value, _core.Optimizer)
    }
    assert CLASSES.keys() == reference.RULES.keys() == optimizers.VARIANTS.keys()
    assert CLASSES.keys() <= set(sp.__all__)
    assert compiled == {cls._core_class.__name__ for cls in CLASSES.values()} | {"Optimizer"}
    assert compiled == stubs()[0] - {"Backpropagation", "Chain", "Tensors"}
    assert {name.lower() for name in compiled - {"Optimizer"}} == set(kernel_fields("RuleKernels")) - {"keep"}
    source = (ROOT / "cpp/kernels/rules.hpp").read_text()
    for name in compiled - {"Optimizer"}:
        assert f"void with_rule(const {name.capitalize()}Step<T>&" in source


def test_every_kernel_is_in_the_table() -> None:
    structs = "LossKernels", "LayerKernels", "ProductKernels", "QuantizedKernels"
    parts = {"sum", "sum_of_squares", "is_finite", "matmul_sparse", "sparse_row"}  # of kernels that are
    parts |= {"list_columns", "matmul_listed", "nonzero_columns", "spread_columns"}
    fields = {field for struct in structs for field in kernel_fields(struct)} - parts
    assert len(fields) >= 6
    assert fields <= KERNELS.keys()
    assert KERNELS.keys() - fields == reference.RULES.keys() | {"global_norm", "kl_divergence"}
    assert all(callable(getattr(reference, name)) for name in KERNELS.keys() - reference.RULES.keys())


def test_the_stub_has_every_compiled_function() -> None:
    compiled = {name for name, value in vars(_core).items() if inspect.isroutine(value)}
    assert compiled == stubs()[1]


@parametrize_rules
def test_formula_and_class_have_the_same_defaults(rule: str) -> None:
    def defaults(function: Any) -> dict[str, Any]:
        return {
            name: parameter.default
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.default is not parameter.empty
        }

    shared = {**defaults(reference.fused), "max_norm": None, "nonfinite": "propagate", **STORAGE}
    of_class, of_formula = defaults(CLASSES[rule]), defaults(reference.RULES[rule])
    assert of_formula.items() <= of_class.items()
    assert of_class.keys() - of_formula.keys() <= shared.keys()
    assert all(of_class[name] == shared[name] for name in of_class.keys() - of_formula.keys())


# ---------------------------------------------------------------------------------------------
# Whatever the options and the data


def rates(low: float, high: float) -> st.SearchStrategy[float]:
    """Also such as float32 rounds to 0, or to a subnormal."""
    return st.one_of(st.just(low), st.floats(low, high, exclude_max=True), st.sampled_from([1e-50, 1e-40, 1e-8]))


def option_values(name: str, default: Any) -> st.SearchStrategy[Any]:
    if isinstance(default, bool):
        return st.booleans()
    if name == "betas":
        return st.tuples(rates(0, 0.99999), rates(0, 0.99999))
    if name in ("eps", "max_value", "max_norm"):
        positive = st.one_of(st.floats(1e-30, 1e30), st.sampled_from([1e-8, 1.0, 1e-40]))
        return positive if default is not None else st.one_of(st.none(), positive)
    return rates(0, 0.99999 if name in ("momentum", "dampening", "beta", "alpha") else 100)


@st.composite
def any_options(draw: st.DrawFn, rule: str) -> dict[str, Any]:
    parameters = inspect.signature(CLASSES[rule]).parameters
    options = {
        name: draw(option_values(name, parameter.default))
        for name, parameter in parameters.items()
        if name not in ("params", "nonfinite", *STORAGE) and (name == "lr" or draw(st.booleans()))
    }
    if options.get("nesterov"):
        options["momentum"] = 0.9
    if options.get("nesterov") or options.get("lr_in_velocity"):
        options.pop("dampening", None)
    return options


@parametrize_dtypes
@parametrize_rules
@settings(max_examples=50)
@given(data=st.data())
def test_any_options_and_any_bits(rule: str, dtype: Any, data: st.DataObject) -> None:
    """Also with a state that never came out of a step: subnormal, negative where squares should be, NaN."""
    options = data.draw(any_options(rule))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    grad_scale = data.draw(st.one_of(st.floats(-1e30, 1e30), st.sampled_from([1.0, 0.5, -0.0, 1e-45])))
    n, t = data.draw(st.integers(0, 300)), data.draw(st.integers(0, 10**6))
    values = special_values(dtype)

    def draw_array() -> Array:
        wild = np.frombuffer(rng.bytes(n * dtype.itemsize), dtype)
        x = rng.choice([0, 1, 2], n)
        return np.choose(x, [wild, rng.choice(values, n), rng.standard_normal(n).astype(dtype)])

    p = draw_array()
    optimizer = CLASSES[rule](p, **options)
    saved = optimizer.state_dict()
    for name, value in saved["state"][0].items():
        if isinstance(value, np.ndarray):
            saved["state"][0][name] = draw_array()
    saved["state"][0]["step"] = t
    optimizer.load_state_dict(saved)

    expected, state = p.copy(), dict(saved["state"][0])
    max_norm = options.pop("max_norm", None)
    for k in range(2):
        g = draw_array()
        if max_norm is not None:
            g = np.where(np.abs(g) < 1e18, g, dtype.type(1))
        with np.errstate(all="ignore"):
            norm = abs(grad_scale) * reference.global_norm([g])
            scale = grad_scale * reference.clip_factor(norm, max_norm)
            formula = reference.RULES[rule]
            expected, state = formula(expected, g, state, t + k + 1, scale=scale, **options)
        optimizer.step(g, grad_scale)
        assert_same(p, expected)
        for name, value in state_of(optimizer)[0].items():
            if name not in ("step", "mu_product"):
                assert_same(value, state[name])


@parametrize_dtypes
@parametrize_rules
def test_state_never_stays_subnormal(rule: str, dtype: Any) -> None:
    """With zero gradients it decays, and would make every step slow once it is subnormal."""
    rng = np.random.default_rng(0)
    tiny = np.finfo(dtype).tiny
    p = rng.standard_normal(1000).astype(dtype)
    optimizer = CLASSES[rule](p, **MAKE.get(rule, {}))
    optimizer.step((np.exp(rng.uniform(-60, 2, p.size)) * rng.choice([-1, 1], p.size)).astype(dtype))
    saved = optimizer.state_dict()
    for name, value in saved["state"][0].items():  # to the threshold in few steps
        if isinstance(value, np.ndarray):
            value[:] = tiny * rng.uniform(1, 10, p.size) * (1 if "sq" in name else rng.choice([-1, 1], p.size))
    optimizer.load_state_dict(saved)
    zeros = np.zeros_like(p)
    for _ in range(100):
        optimizer.step(zeros)
        for name, value in state_of(optimizer)[0].items():
            if isinstance(value, np.ndarray):
                assert not np.any((value != 0) & (np.abs(value) < tiny)), name


def test_a_flushed_state_is_plus_zero() -> None:
    p = np.zeros(4, np.float32)
    optimizer = sp.Momentum(p, beta=0.5)
    optimizer.step(np.array([-1, 1, -1e-37, 1e-37], np.float32) * np.float32(1e-38))
    buffer = state_of(optimizer)[0]["momentum_buffer"]
    assert buffer.tobytes() == np.zeros(4, np.float32).tobytes()


@parametrize_rules
def test_a_tensor_without_a_gradient_lags(rule: str) -> None:
    """It goes on as if the steps that it missed had not been."""
    rng = np.random.default_rng(1)
    start, grads = rng.standard_normal((5, 40)), rng.standard_normal((9, 5, 40))
    take = rng.random((9, 5)) < 0.6
    take[:, 0], take[3] = True, False
    params = list(start.copy())
    optimizer = CLASSES[rule](params)
    for g, taken in zip(grads, take, strict=True):
        optimizer.step([x if is_taken else None for x, is_taken in zip(g, taken, strict=True)])
    assert optimizer.steps == 9
    for i, p in enumerate(params):
        alone = start[i].copy()
        single = CLASSES[rule](alone)
        for g in grads[take[:, i], i]:
            single.step(g)
        assert state_of(optimizer)[i]["step"] == take[:, i].sum()
        assert_same(p, alone)


@parametrize_dtypes
@parametrize_rules
@settings(max_examples=25)
@given(data=st.data())
def test_it_does_not_matter_how_elements_are_split(rule: str, dtype: Any, data: st.DataObject) -> None:
    """In tensors, in groups and among threads."""
    n = 400
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=12)))
    groups = data.draw(st.integers(1, len(cuts) + 1))
    rng = np.random.default_rng(len(cuts))
    p, grads = rng.standard_normal(n).astype(dtype), rng.standard_normal((3, n)).astype(dtype)
    whole, parts = p.copy(), np.split(p.copy(), cuts)
    options = {**MAKE.get(rule, {}), "l1": 0.01, "max_value": 1.5}

    one = CLASSES[rule](whole, **options)
    many = CLASSES[rule]([{"params": parts[i::groups]} for i in range(groups)], **options)
    for g in grads:
        _core._share_blocks_of(0)
        one.step(g)
        pieces = np.split(g, cuts)
        _core.set_num_threads(data.draw(st.sampled_from([1, 2, 3])))
        _core._share_blocks_of(data.draw(st.sampled_from([0, 7, 100])))
        many.step([pieces[i::groups] for i in range(groups)])
    assert_same(np.concatenate(parts), whole)


@parametrize_rules
def test_float32_and_float64_mix(rule: str) -> None:
    rng = np.random.default_rng(2)
    kinds = (np.float32, np.float64, np.float64, np.float32, np.float32)
    start = [rng.standard_normal(50).astype(kind) for kind in kinds]
    together, alone = [x.copy() for x in start], [x.copy() for x in start]
    optimizer, singles = CLASSES[rule](together), [CLASSES[rule](x) for x in alone]
    for _ in range(3):
        grads = [rng.standard_normal(50).astype(kind) for kind in kinds]
        optimizer.step(grads)
        for single, g in zip(singles, grads, strict=True):
            single.step(g)
    for x, y in zip(together, alone, strict=True):
        assert_same(x, y)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_the_norm_of_a_step_is_shared_among_threads(threads: int, isa: str) -> None:
    rng = np.random.default_rng(3)
    grads = [rng.standard_normal(n) for n in (1, 5000, 33, 20_000)]
    params = [np.zeros_like(g) for g in grads]
    _core.set_num_threads(threads)
    _core._share_blocks_of(1)
    optimizer = sp.SGD(params, max_norm=0.5)
    optimizer.step(grads)
    assert all(n > 0 for n in _core._blocks_run())
    assert optimizer.last_norm == sp.global_norm(grads) == reference.global_norm(grads)


def test_special_values_meet_in_one_tensor(isa: str) -> None:
    """A special value in a lane does not reach its neighbours."""
    for dtype in DTYPES:
        p, g = pairs(special_values(dtype))
        whole = p.copy()
        sp.AdamW(whole, l1=0.1, l2=0.1).step(g)
        for i in range(0, p.size, 17):
            single = p[i : i + 1].copy()
            sp.AdamW(single, l1=0.1, l2=0.1).step(g[i : i + 1].copy())
            assert_same(whole[i : i + 1], single)
