"""`steepest verify` passes, sees any fault, says where it is, and leaves everything as it was."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steepest import _core, losses, optim, reference, verify
from steepest._cases import KERNELS, PAIRS, Expected, Sum, ulps
from steepest._cases.case import Case

pytestmark = pytest.mark.kernels

ISAS: list[str] = _core.build_info()["isas"]


def nudge(x: Any, at: int = 0) -> None:
    """Changes an element by a unit in the last place."""
    flat = x.reshape(-1)
    flat[at] = flat[at] ^ 1 if x.dtype.kind == "u" else np.nextafter(flat[at], x.dtype.type(np.inf))


def test_all_is_verified(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.run(quick=True) == 0
    lines = capsys.readouterr().out.splitlines()
    for kernel in KERNELS:
        rows = [line.split() for line in lines if line.startswith(f"{kernel} ")]
        assert [row[1:3] for row in rows] == [[str(dtype), isa] for k, dtype in PAIRS if k == kernel for isa in ISAS]
        for _, _, _, cases, error, *sums in rows:
            assert int(cases.replace(",", "")) > 10
            assert error == "0"
            assert all(float(x) <= verify.SUM_BOUND for x in sums)
    openmp = [3, 7] if _core.build_info()["openmp"] else []
    shared = [line.split() for line in lines if re.match(r"(pool|openmp) +\d+ threads? ", line)]
    assert [len(row) - 3 for row in shared] == [*verify.THREADS, *openmp]
    assert all(int(n.replace(",", "")) > 0 for row in shared for n in row[3:])
    assert re.fullmatch(rf"verified: [\d,]+ cases of {len(KERNELS)} kernels, no difference \(\d+ s\)", lines[-1])


def faulty(kernel: str, monkeypatch: pytest.MonkeyPatch, is_on: Callable[[], bool]) -> None:
    """Plants a fault of 1 ULP in one element of what the kernel gives, where it is on."""

    def plant(module: Any, name: str, touch: Callable[..., None]) -> None:
        original = getattr(module, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if is_on():
                touch(result, *args, **kwargs)
            return result

        monkeypatch.setattr(module, name, call)

    def touch_params(_: None, optimizer: optim.Optimizer, *args: Any) -> None:
        nudge(max(optimizer.param_groups[0]["params"], key=len), -1)

    def touch_result(result: Any, *args: Any, **kwargs: Any) -> None:
        arrays = [x for x in result if isinstance(x, np.ndarray)] if isinstance(result, tuple) else [result]
        if arrays[0].size > 1:
            nudge(arrays[0], arrays[0].size // 2)

    def touch_output(_: None, *args: Any, **kwargs: Any) -> None:
        arrays = [x for x in (*args, *kwargs.values()) if isinstance(x, np.ndarray) and x.dtype.kind in "fu"]
        images = kernel in ("mask", "col2im", "avg_pool_backward", "max_pool_backward")
        output = arrays[0] if images else arrays[-1]
        if output.size > 1:
            nudge(output, output.size // 2)

    if kernel in reference.RULES:
        plant(getattr(optim, kernel), "step", touch_params)
    elif hasattr(losses, kernel):
        plant(losses, kernel, touch_result)
    elif kernel in ("exp", "log", "log1p"):
        plant(_core, f"_{kernel}", touch_result)
    elif kernel == "value_range":
        plain = _core.value_range
        monkeypatch.setattr(_core, kernel, lambda x: (plain(x)[0], plain(x)[1] + 1) if is_on() else plain(x))
    elif kernel == "global_norm":
        original = _core.global_norm
        monkeypatch.setattr(_core, kernel, lambda x: float(np.nextafter(original(x), 9)) if is_on() else original(x))
    else:
        plant(_core, "max_pool" if kernel == "max_pool_backward" else kernel, touch_output)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_fault_is_seen_and_named(
    kernel: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one unit in the last place of one element, on one ISA, with one engine and one number of threads."""
    threads = 1 if kernel in ("exp", "log", "log1p") else 3

    def is_on() -> bool:
        at = _core.build_info()["isa"], _core.get_threading(), _core.get_num_threads()
        return at == (ISAS[-1], "pool", threads)

    faulty(kernel, monkeypatch, is_on)
    assert verify.run(quick=True, kernels=[kernel]) == 1
    out = capsys.readouterr().out
    many = "s" * (threads > 1)
    for dtype in (str(dtype) for name, dtype in PAIRS if name == kernel):
        row, first = re.findall(rf"^({kernel} +{dtype} +{ISAS[-1]} .*)\n  (.*)$", out, re.MULTILINE)[0]
        assert row.endswith("FAILED")
        assert first.startswith(f"{kernel} {dtype}, {ISAS[-1]}, pool engine, {threads} thread{many}: ")
        assert " ULP from " in first or " unit" in first
        assert not re.search(rf"^{kernel} +{dtype} +(?! |{ISAS[-1]}).*FAILED", out, re.MULTILINE)
    assert re.match(r"FAILED: [\d,]+ violations", out.splitlines()[-1])


def test_a_faulty_state_is_seen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    original = optim.Adam.state_dict

    def state_dict(self: optim.Adam) -> dict[str, Any]:
        result = original(self)
        nudge(max((state["exp_avg_sq"] for state in result["state"].values()), key=len))
        return result

    monkeypatch.setattr(optim.Adam, "state_dict", state_dict)
    assert verify.run(quick=True, kernels=["Adam"]) == 1
    assert "exp_avg_sq at element" in capsys.readouterr().out


def test_a_thread_without_blocks_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    share = _core._share_blocks_of
    monkeypatch.setattr(_core, "_share_blocks_of", lambda units: share(10**9 if units else 0))
    assert verify.run(quick=True, kernels=["Lion"]) == 1
    out = capsys.readouterr().out
    assert f"Lion float32, {ISAS[0]}, pool engine, 2 threads: thread 2 ran no block" in out
    assert "thread 1 ran no block" not in out


def test_a_sum_out_of_its_bound_is_seen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where kernel and formula agree."""
    for module in (losses, reference):
        original: Any = module.mse

        def mse(*args: Any, original: Any = original, **kwargs: Any) -> Any:
            loss, *rest = original(*args, **kwargs)
            return (loss * (1 + 2**-49), *rest)

        monkeypatch.setattr(module, "mse", mse)
    assert verify.run(quick=True, kernels=["mse"]) == 1
    assert "units from the exact" in capsys.readouterr().out


def test_a_signed_zero_is_a_difference_and_a_nan_is_a_nan() -> None:
    x = np.array([0.0, np.nan, 1.0, -np.inf])
    y = np.array([0.0, -np.nan, 1.0, -np.inf])
    assert ulps(x, y) == (0, 0)
    assert ulps(x, np.array([-0.0, np.nan, 1.0, -np.inf])) == (1, 0)
    assert ulps(x, np.array([0.0, 1.0, 1.0, -np.inf])) == (np.inf, 1)
    assert ulps(x, np.array([0.0, np.nan, 1.0, -np.finfo(float).max])) == (1, 3)
    assert ulps(np.array([-1.0]), np.array([1.0]))[0] > 1e18
    assert ulps(x, x.astype(np.float32))[0] == ulps(x, x[:3])[0] == np.inf


def test_what_is_missing_and_what_raises_is_seen() -> None:
    def found(actual: Any) -> list[str]:
        case = Case("a case", {}, lambda: Expected({}), actual, 0)
        wanted = Expected({"a": np.zeros(2), "b": np.zeros(1)}, {"b": Sum(0.0, 1.0)})
        return list(verify.violations(case, wanted, verify.Row()))

    assert found(lambda: {"a": np.zeros(2)}) == ["expected a, b; got a"]
    assert found(lambda: 1 / 0) == ["ZeroDivisionError: division by zero"]
    assert found(lambda: {"a": np.zeros(2), "b": np.array([5.0])})[-1] == "b: 5.0 is 5 units from the exact 0.0"


@pytest.mark.parametrize("fails", [False, True])
def test_settings_are_restored(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def now() -> tuple[Any, ...]:
        return _core.build_info()["isa"], _core.get_threading(), _core.get_num_threads()

    _core._set_isa(ISAS[0])
    _core.set_num_threads(5)
    before = now()
    if fails:
        monkeypatch.setattr(verify, "violations", None)
        with pytest.raises(TypeError):
            verify.run(quick=True, kernels=["log"])
    else:
        assert verify.run(quick=True, kernels=["log"]) == 0
    assert now() == before
    _core._share_blocks_of(0)
    optim.SGD(np.zeros(10)).step(np.zeros(10))
    assert sum(_core._blocks_run()) <= 1


def test_one_isa(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.run(quick=True, kernels=["log"], isas=ISAS[:1]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("log ")]
    assert len(rows) == 2 and all(ISAS[0] in row for row in rows)
