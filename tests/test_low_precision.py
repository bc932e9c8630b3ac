"""State and parameters in fewer bytes than float32: codecs, optimizers, copies and refusals; bits are in the table."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

import steepest as sp
from steepest import _core, nn, reference
from steepest.reference.codecs import GROUP

Array = NDArray[Any]
LOW: tuple[Literal["bfloat16", "8bit"], ...] = ("bfloat16", "8bit")
parametrize_low = pytest.mark.parametrize("state_dtype", LOW)


def half(x: Array) -> Array:
    """As bfloat16, without ml_dtypes."""
    return reference.to_bfloat16(np.asarray(x, np.float32)).view(_core._bfloat16_bits)


def single(x: Array) -> Array:
    return reference.from_bfloat16(x.view(np.uint16))


def state_of(optimizer: sp.Optimizer, i: int = 0) -> dict[str, Any]:
    return dict(optimizer.state_dict()["state"][i])


# ---------------------------------------------------------------------------------------------
# Codecs


def test_bfloat16_is_ml_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    with np.errstate(all="ignore"):
        x = np.frombuffer(np.random.default_rng(0).bytes(400_000), np.float32)
        code, theirs = reference.to_bfloat16(x), x.astype(ml_dtypes.bfloat16)
        is_nan = np.isnan(x)
        assert np.array_equal(code[~is_nan], theirs.view(np.uint16)[~is_nan])
        assert np.isnan(reference.from_bfloat16(code[is_nan])).all()
        assert np.array_equal(reference.from_bfloat16(code)[~is_nan], theirs.astype(np.float32)[~is_nan])


def test_what_is_split_is_joined_to_the_same_float32() -> None:
    x = np.frombuffer(np.random.default_rng(0).bytes(4_000_000), np.float32)
    x = np.concatenate([x[~np.isnan(x)], np.arange(0x3F7F0000, 0x3F810001, dtype=np.uint32).view(np.float32)])
    p, correction = reference.split(x)
    assert np.array_equal(reference.join(p, correction).view(np.uint32), x.view(np.uint32))
    normal = np.isfinite(x) & (np.abs(x) < 3e38) & (np.abs(x) > 1e-37)
    error = np.abs(reference.from_bfloat16(p)[normal].astype(np.float64) / x[normal] - 1)
    assert error.max() <= 2.0**-8
    assert reference.join(np.zeros(1, np.uint16), np.full(1, -1, np.int16)) == 0


def in_8_bits(x: Array, signed: bool, random: Array | None = None) -> Array:
    return reference.from_8bit(*reference.to_8bit(x, signed, random))


@pytest.mark.parametrize("signed", [False, True])
def test_codes_of_8_bits(signed: bool) -> None:
    rng = np.random.default_rng(0)
    exponents = (-15, 0) if signed else (-30, 0)
    x = (2.0 ** rng.uniform(*exponents, 10_000) * 10.0 ** rng.integers(-25, 25)).astype(np.float32)
    x *= rng.choice([-1, 1], x.size) if signed else 1
    codes, scales, bits = reference.to_8bit(x, signed)
    y = reference.from_8bit(codes, scales, bits)
    assert codes.dtype == np.uint8 and scales.size == -(-x.size // GROUP)
    assert (bits is not None) == signed and (bits is None or (bits.dtype == np.uint8 and bits.size == 1250))
    assert np.abs(y / x - 1).max() <= 1 / (32 if signed else 16)
    for again in (None, reference.random_bits(x.size, 0, 1, 20)):
        assert np.array_equal(in_8_bits(y, signed, again), y)
    total = sum(in_8_bits(x, signed, reference.random_bits(x.size, 0, t, 20)).astype(float) for t in range(1000))
    assert np.abs(total / 1000 / x - 1).max() < 0.02  # stochastic rounding has no bias
    assert np.abs((total / 1000 / x - 1).mean()) < 1e-4


def test_the_8_bit_codes_of_what_is_special() -> None:
    x = np.array([0, 1e-30, 1, 2, np.inf, np.nan], np.float32)
    y = in_8_bits(x, signed=False)
    assert y[0] == 0 and 0 < y[1] < 1e-9 and y[2] == 1 and y[3] == 2 and y[4] == np.inf and np.isnan(y[5])
    y = in_8_bits(-x, signed=True)
    assert y[1] == 0 and y[2] == -1 and y[3] == -2 and y[4] == -np.inf and np.isnan(y[5])
    largest = np.array([np.finfo(np.float32).max, 1e-38], np.float32)
    y = in_8_bits(largest, signed=False)
    assert np.isfinite(y[0]) and y[0] > 3e38 and y[1] > 0


@pytest.mark.parametrize("bits", [16, 20])
def test_random_bits_are_as_good_as_random(bits: int) -> None:
    n, sharing = 5120, reference.codecs.SHARING
    uniform = np.stack([reference.random_bits(n, 3, t, bits) for t in range(400)]) / 2.0**bits
    assert uniform.min() >= 0 and uniform.max() < 1
    assert np.abs(uniform.mean(axis=0) - 0.5).max() < 0.08  # of each element: 5.5 standard deviations
    assert np.abs(uniform.mean(axis=1) - 0.5).max() < 0.02
    first, second = np.split(uniform.reshape(400, -1, sharing), 2, axis=2)  # which share hashes
    pairs = (uniform[:-1], uniform[1:]), (uniform[:, :-1], uniform[:, 1:]), (first, second)
    for a, b in (*pairs, (first[:-1], second[1:]), (second[:-1], first[1:])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.005
    counts = np.bincount((uniform * 2**8).astype(int).ravel(), minlength=2**8)
    assert np.abs(counts / counts.mean() - 1).max() < 5 / np.sqrt(counts.mean())
    keys = ((0, 1), (1, 1), (0, 2), (0, 1 + 2**32))
    assert len({reference.random_bits(1, *key, bits)[0] for key in keys}) == len(keys)
    far = reference.random_bits(2, 0, 1, bits, first=2**32 - 1)
    assert far[0] == reference.random_bits(2**16, 0, 1, bits, first=2**32 - 2**16)[-1]
    assert far[1] != reference.random_bits(1, 0, 1, bits)[0]


# ---------------------------------------------------------------------------------------------
# What the state does over many steps


@parametrize_low
def test_averages_do_not_stick(state_dtype: Any) -> None:
    """With a gradient of a new magnitude v follows, in the mean over the elements; to nearest it would stay."""
    n = 8192

    def mean(state: dict[str, Any], name: str) -> float:
        if state_dtype == "bfloat16":
            return float(reference.from_bfloat16(state[name]).mean())
        return float(reference.from_8bit(state[name], state[name + "_scale"], state.get(name + "_bits")).mean())

    def run(seed: int | None) -> tuple[float, float]:
        optimizer = sp.Adam(np.zeros(n, np.float32), state_dtype=state_dtype, seed=seed)
        for size in [1.0] * 300 + [3.0] * 1000:
            optimizer.step(np.full(n, size, np.float32))
        state = state_of(optimizer)
        return mean(state, "exp_avg"), mean(state, "exp_avg_sq")

    m, v = run(seed=0)
    expected = 9 * (1 - 0.999**1000) + 0.999**1000 * (1 - 0.999**300)
    assert v == pytest.approx(expected, rel=0.02)
    assert m == pytest.approx(3, rel=0.025)  # m to nearest stays half a unit / (1 - beta1) away
    assert run(seed=None)[1] < 0.8 * expected


@parametrize_low
@pytest.mark.parametrize("rule", ["Adam", "NAdam", "RMSprop", "Adagrad"])
def test_mixed_magnitudes_make_no_large_step(rule: str, state_dtype: Any) -> None:
    """One gradient is 1,000 times its neighbours, then stops: no update is twice what it is with float32 state."""
    n, lr = 65_536, 1e-3
    p, q = np.zeros(n, np.float32), np.zeros(n, np.float32)
    low, full = (getattr(sp, rule)(x, lr=lr, state_dtype=d) for x, d in ((p, state_dtype), (q, "float32")))
    g = np.full(n, 1e-3, np.float32)
    largest = 0.0
    for k in range(200):
        g[::100] = 1.0 if k < 50 else 0.0
        before = p.copy(), q.copy()
        low.step(g)
        full.step(g)
        mine, theirs = (np.abs(x - y) for x, y in zip((p, q), before, strict=True))
        counts = theirs > 1e-3 * lr  # what decays below it does so with the noise of its rounding
        largest = max(largest, float((mine[counts] / theirs[counts]).max()))
        assert mine[~counts].max(initial=0) <= 2e-3 * lr
    assert largest < 2


@parametrize_low
def test_a_gradient_that_is_not_finite_stays_with_its_element(state_dtype: Any) -> None:
    rng = np.random.default_rng(0)
    p, q = np.zeros(4096, np.float32), np.zeros(4096, np.float32)
    optimizers = [sp.Adam(x, state_dtype=state_dtype) for x in (p, q)]
    for k in range(3):
        g = rng.standard_normal(p.size).astype(np.float32)
        optimizers[0].step(g)
        if k == 1:
            g[[5, 300, 301]] = np.nan, np.inf, 1e30
        optimizers[1].step(g)
    assert np.isnan(q[[5, 300]]).all()
    others = np.delete(np.arange(p.size), [5, 300, 301])
    groups = others[others // GROUP > 1] if state_dtype == "8bit" else others
    assert np.array_equal(p[groups], q[groups]) and np.isfinite(np.delete(q, [5, 300])).all()


# ---------------------------------------------------------------------------------------------
# bfloat16 parameters


@pytest.mark.parametrize("master_weights", ["split", "float32"])
def test_bfloat16_parameters_are_rounded_float32_parameters(master_weights: str) -> None:
    """With state in float32 they are, to the bit, those of a float32 model that sees the same gradients."""
    rng = np.random.default_rng(0)
    start = single(half(rng.standard_normal(5000)))
    wide, narrow = start.copy(), half(start)
    optimizers = (
        sp.AdamW(wide, state_dtype="float32", max_norm=1.0),
        sp.AdamW(narrow, state_dtype="float32", max_norm=1.0, master_weights=master_weights),
    )
    for _ in range(20):
        g = half(rng.standard_normal(start.size))
        optimizers[0].step(single(g))
        optimizers[1].step(g)
        assert optimizers[0].last_norm == optimizers[1].last_norm
    assert np.array_equal(narrow.view(np.uint16), reference.split(wide)[0])
    state = state_of(optimizers[1])
    kept = (
        state["master_weights"]
        if master_weights == "float32"
        else reference.join(narrow.view(np.uint16), state["weight_correction"])
    )
    assert np.array_equal(kept, wide)


@pytest.mark.parametrize("master_weights", ["split", "float32"])
def test_bfloat16_parameters_that_are_changed_by_hand_are_taken(master_weights: str) -> None:
    p = half(np.linspace(-1, 1, 100))
    optimizer = sp.SGD(p, lr=0.0, master_weights=master_weights)
    optimizer.step(half(np.ones(100)))
    new = half(np.linspace(3, 0, 100))
    p[...] = new
    optimizer.step(half(np.ones(100)))
    assert np.array_equal(p.view(np.uint16), new.view(np.uint16))


def test_arrays_of_ml_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.random.default_rng(0).standard_normal(5000)
    p, q = x.astype(ml_dtypes.bfloat16), half(x)
    optimizers = sp.AdamW(p, nonfinite="raise"), sp.AdamW(q)
    for optimizer, g in zip(optimizers, (p.copy(), q.copy()), strict=True):
        optimizer.step(g)
        assert "bfloat16" in repr(optimizer)
    assert np.array_equal(p.view(np.uint16), q.view(np.uint16))
    assert sp.global_norm([p, q]) == reference.global_norm([single(p), single(q)])
    with pytest.raises(FloatingPointError, match="nothing was changed"):
        optimizers[0].step(np.full(5000, np.inf, p.dtype))
    for g, got in ((x.astype(np.float32), "float32"), (x, "float64")):
        with pytest.raises(TypeError, match=f"grads: expected dtype bfloat16, got {got}"):
            optimizers[0].step(g)
    with pytest.raises(TypeError, match="grads: expected dtype float32, got bfloat16"):
        sp.Adam(x.astype(np.float32)).step(p)
    with pytest.raises(TypeError, match="expected dtype float32, float64 or bfloat16, got uint16"):
        sp.Adam(p.view(np.uint16))
    with pytest.raises(TypeError, match="expected dtype float32 or float64, got bfloat16"):
        sp.losses.mse(p, p)


def test_any_shape_and_order() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((70, 80))
    shaped = [half(np.asfortranarray(x).T), np.asfortranarray(x.astype(np.float32)), half(x[0, 0]), half(x[:0])]
    flat = [half(x.ravel("F")), x.ravel("F").astype(np.float32), half(x[0, 0:1]), half(x[:0].ravel())]
    flat = [a.reshape(-1) for a in flat]
    optimizers = [sp.NAdam(params, state_dtype="8bit") for params in (shaped, flat)]
    for _ in range(3):
        for optimizer, params in zip(optimizers, (shaped, flat), strict=True):
            optimizer.step([p.copy("K") for p in params])
    for i, (a, b) in enumerate(zip(shaped, flat, strict=True)):
        assert np.array_equal(a.ravel("K"), b)
        for name, value in state_of(optimizers[0], i).items():
            if isinstance(value, np.ndarray):
                shared = GROUP if name.endswith("_scale") else 8 if name.endswith("_bits") else 0
                assert value.shape == ((-(-a.size // shared),) if shared else a.shape)
                assert np.array_equal(value.ravel("K"), state_of(optimizers[1], i)[name])


# ---------------------------------------------------------------------------------------------
# Copies, checkpoints, bytes


def test_bytes_of_the_state() -> None:
    n = 1 << 20
    for state_dtype, most in ((None, 8), ("bfloat16", 4), ("8bit", 2.16)):
        state = state_of(sp.Adam(np.zeros(n, np.float32), state_dtype=state_dtype))  # type: ignore[arg-type]
        assert sum(x.nbytes for x in state.values() if isinstance(x, np.ndarray)) / n <= most
    small = state_of(sp.Adam([np.zeros(4095, np.float32)], state_dtype="8bit"))
    assert small["exp_avg"].dtype == np.float32 and small.keys() == {"step", "exp_avg", "exp_avg_sq"}


@parametrize_low
@pytest.mark.parametrize("rule", ["AdamW", "RMSprop", "Adagrad", "SGD", "Lion"])
def test_every_copy_goes_on_with_the_same_bits(rule: str, state_dtype: Any) -> None:
    rng = np.random.default_rng(0)
    of_rule: dict[str, dict[str, Any]] = {
        "SGD": {"momentum": 0.9},
        "AdamW": {"amsgrad": True, "master_weights": "float32"},
    }
    options = {"state_dtype": state_dtype, "seed": 7, **of_rule.get(rule, {})}
    arrays = [rng.standard_normal(n).astype(np.float32) for n in (4096, 5000, 20)]
    params = [arrays[0], half(arrays[1]), half(arrays[2])]
    grads = [[rng.standard_normal(4096).astype(np.float32), *(half(rng.standard_normal(n)) for n in (5000, 20))]
             for _ in range(4)]  # fmt: skip
    optimizer = getattr(sp, rule)(params, **options)
    for g in grads[:2]:
        optimizer.step(g)
    loaded = getattr(sp, rule)([p.copy() for p in params], **options)
    loaded.load_state_dict(optimizer.state_dict())
    copies = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer)), loaded]
    for g in grads[2:]:
        for each in (optimizer, *copies):
            each.step(g)
    for each in copies:
        for p, q in zip(params, each.param_groups[0]["params"], strict=True):
            assert p.tobytes() == q.tobytes() and p.dtype == q.dtype
        for i in range(3):
            a, b = state_of(optimizer, i), state_of(each, i)
            assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@parametrize_low
def test_checkpoints_keep_the_codes(state_dtype: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model = nn.Sequential([nn.Dense(100), nn.ReLU(), nn.Dense(3)], input_shape=64)
    optimizer = sp.AdamW(model.param_groups(), state_dtype=state_dtype, seed=3)
    grads = rng.standard_normal((4, model.params.size)).astype(np.float32)

    def step(optimizer: sp.Optimizer, g: Array) -> None:
        params = [group["params"] for group in optimizer.param_groups]
        parts = np.split(g, np.cumsum([p.size for p in params])[:-1])
        optimizer.step([x.reshape(p.shape) for x, p in zip(parts, params, strict=True)])

    for g in grads[:2]:
        step(optimizer, g)
    sp.save(tmp_path / "a.safetensors", model, optimizer=optimizer)
    saved = sp.load(tmp_path / "a.safetensors")
    assert saved.optimizer is not None
    for g in grads[2:]:
        step(optimizer, g)
        step(saved.optimizer, g)
    assert np.array_equal(model.params, saved.model.params)
    dtypes = {v.dtype for s in saved.optimizer.state_dict()["state"].values() for v in s.values() if np.ndim(v)}
    assert np.dtype(np.uint16 if state_dtype == "bfloat16" else np.uint8) in dtypes


def test_added_groups_and_memory_maps(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "p", np.uint16, "w+", shape=(5000,)).view(_core._bfloat16_bits)
    plain = np.zeros(5000, np.uint16).view(_core._bfloat16_bits)
    rng = np.random.default_rng(0)
    optimizers = [sp.Adam([{"params": half(np.zeros(3))}], state_dtype="8bit") for _ in range(2)]
    for optimizer, p in zip(optimizers, (mapped, plain), strict=True):
        optimizer.add_param_group({"params": p, "lr": 0.1})
    for _ in range(3):
        g = half(rng.standard_normal(5000))
        for optimizer in optimizers:
            optimizer.step([half(np.ones(3)), g])
    assert np.array_equal(mapped, plain) and plain.any()


# ---------------------------------------------------------------------------------------------
# Refusals


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"state_dtype": "float16"}, ValueError, "state_dtype: expected one of None, 'float32', 'bfloat16', '8bit'"),
        ({"master_weights": "both"}, ValueError, "master_weights: expected one of 'split', 'float32', got 'both'"),
        ({"seed": -1}, ValueError, "seed: expected an integer from 0"),
        ({"seed": 2**32}, ValueError, "seed: expected an integer from 0"),
        ({"seed": 1.0}, TypeError, "seed: expected an integer or None, got float"),
        ({"centered": True, "state_dtype": "8bit"}, ValueError, 'state_dtype: expected "float32" beside centered=True'),
        ({"params": np.zeros(3), "state_dtype": "8bit"}, ValueError, "state_dtype: expected None beside the float64"),
    ],
)  # fmt: skip
def test_refused_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sp.RMSprop(**{"params": np.zeros(5000, np.float32), **options})


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("exp_avg", np.zeros(5000, np.float32), TypeError, r"state\[0\]\['exp_avg'\]: expected .* got dtype float32"),
        ("exp_avg", [0] * 5000, TypeError, r"state\[0\]\['exp_avg'\]: expected .*uint8, got list"),
        ("exp_avg", np.zeros(10_000, np.uint8)[::2], ValueError, r"state\[0\]\['exp_avg'\]: expected a contiguous"),
        ("exp_avg_sq", np.zeros(4999, np.uint8), ValueError, r"state\[0\]\['exp_avg_sq'\]: expected shape \(5000,\)"),
        ("exp_avg_scale", np.zeros(20), TypeError, r"state\[0\]\['exp_avg_scale'\]: expected dtype float32"),
        ("exp_avg_scale", np.zeros(19, np.float32), ValueError, r"'exp_avg_scale'\]: expected shape \(20,\)"),
        ("exp_avg_bits", np.zeros(624, np.uint8), ValueError, r"'exp_avg_bits'\]: expected shape \(625,\)"),
        ("exp_avg_scale", None, ValueError, r"state\[0\]: expected the keys .*'exp_avg_scale'"),
    ],
)  # fmt: skip
def test_refused_state_changes_nothing(name: str, value: Any, error: type[Exception], message: str) -> None:
    optimizer = sp.Adam(np.zeros(5000, np.float32), state_dtype="8bit")
    optimizer.step(np.ones(5000, np.float32))
    before = pickle.dumps(optimizer.state_dict())
    saved = optimizer.state_dict()
    if value is None:
        del saved["state"][0][name]
    else:
        saved["state"][0][name] = value
    with pytest.raises(error, match=message):
        optimizer.load_state_dict(saved)
    assert pickle.dumps(optimizer.state_dict()) == before
