from __future__ import annotations

import numpy as np
import pytest

from steepest import benchmarks
from steepest.benchmarks import KERNELS, Contender, WrongAnswerError


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("n", [1, 1003])
def test_contenders_agree(name: str, n: int) -> None:
    benchmarks.check(KERNELS[name].make(n))


@pytest.mark.parametrize("name", KERNELS)
def test_there_is_a_stream_of_every_shape(name: str) -> None:
    KERNELS[name].make(100)["stream"].call()


def test_a_row_is_measured() -> None:
    row = benchmarks.measure("adamw", 1000, seconds=0.0)
    assert list(row.seconds) == ["ours", "numpy", "out=", "stream"] and min(row.seconds.values()) > 0
    assert row.bandwidth == 28_000 / row.seconds["ours"]


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("wrong", ["numpy", "out="])
@pytest.mark.parametrize("factor", [1.01, np.nan])
def test_a_wrong_answer_is_named(name: str, wrong: str, factor: float) -> None:
    contenders = KERNELS[name].make(1003)
    if wrong not in contenders:
        pytest.skip(f"{name} is not written with {wrong}")
    call, answer = contenders[wrong]
    contenders[wrong] = Contender(call, lambda: [((a - start) * factor + start, start) for a, start in answer()])
    with pytest.raises(WrongAnswerError, match=f"{wrong} differs from ours"):
        benchmarks.check(contenders)


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmarks.run(["adamw", "mse"], [10, 1000], quick=True) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-4:]]
    assert [row[:2] for row in rows] == [["adamw", "10"], ["adamw", "1,000"], ["mse", "10"], ["mse", "1,000"]]


def test_a_wrong_answer_fails_the_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    adamw, lion = KERNELS["adamw"], KERNELS["lion"]
    wrong = adamw._replace(make=lambda n: adamw.make(n) | {"out=": lion.make(n)["out="]})
    monkeypatch.setitem(KERNELS, "adamw", wrong)
    assert benchmarks.run(["adamw"], [1000]) == 1
    assert "adamw, 1,000 elements: out= differs from ours" in capsys.readouterr().err


def test_what_does_not_fit_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmarks.run(["sgd"], [10**15]) == 0
    assert "left out: too little memory" in capsys.readouterr().out


def test_unknown_kernels_and_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"kernels: expected some of adamw, .*got sdg"):
        benchmarks.run(["sdg"])
    with pytest.raises(ValueError, match="sizes: expected numbers of elements from 1 up, got 0"):
        benchmarks.run(sizes=[0])
