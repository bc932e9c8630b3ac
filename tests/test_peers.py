"""The machinery of `bench/peers.py`: its statistics, a contest from end to end, and what it says of absent peers."""

from __future__ import annotations

import ast
import functools
import importlib
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import steepest as sp

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module("peers")


def test_interval_is_the_binomial_one(peers: Any) -> None:
    # The ranks of the sign test's interval, as in any table: 6: 1 and 6; 9: 2 and 8; 20: 6 and 15; 100: 40 and 61.
    for n, low, high in ((6, 1, 6), (9, 2, 8), (20, 6, 15), (100, 40, 61)):
        assert peers.interval([*range(n, 0, -1)]) == (low, high)
    assert peers.interval([1.0] * 5) == (-math.inf, math.inf)


def test_interval_holds_the_median_as_often_as_it_says(peers: Any) -> None:
    samples = np.random.default_rng(0).exponential(size=(2000, 15))
    bounds = [peers.interval(row.tolist()) for row in samples]
    held = np.mean([low <= math.log(2) <= high for low, high in bounds])
    assert abs(held - 0.9648) < 0.015  # 1 - 2 P(Binomial(15, 1/2) < 4), within some 3.5 standard errors


SCRIPTS = [path for path in sorted(BENCH.glob("*.py")) if '"__main__"' in path.read_text()]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_says_what_it_does(script: Path) -> None:
    if script.stem == "torch_steps":
        pytest.importorskip("torch")
    run = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True)
    documentation = ast.get_docstring(ast.parse(script.read_text())) or "none"
    assert " ".join(documentation.split()[:6]) in " ".join(run.stdout.split())


def test_names_that_are_asked_for(
    peers: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for given, expected in (([], ["a", "b c"]), (["b c"], ["b c"])):
        monkeypatch.setattr(sys, "argv", ["script", *given])
        assert peers.asked("", ["a", "b c"]) == expected
    monkeypatch.setattr(sys, "argv", ["script", "d"])
    for names in ([], ["a", "b c"]):
        with pytest.raises(SystemExit):
            peers.asked("", names)
    assert "expected some of a, b c, got d" in capsys.readouterr().err


def test_verdicts(peers: Any) -> None:
    higher, lower = peers.Case(list, bar=2.0), peers.Case(list, bar=2.0, figure=peers.CASES["overhead/4-arrays"].figure)
    for low, high, expected in ((2.0, 3.0, "yes"), (1.0, 1.9, "no"), (1.9, 2.1, "open")):
        assert peers.verdict(higher, low, high) == expected
    for low, high, expected in ((1.0, 2.0, "yes"), (2.1, 3.0, "no"), (1.9, 2.1, "open")):
        assert peers.verdict(lower, low, high) == expected
    assert peers.verdict(peers.Case(list), 0.0, 1.0) == ""


def test_a_contest_with_a_wrong_answer_is_not_timed(peers: Any) -> None:
    contenders: Any = importlib.import_module("contenders")
    right = functools.partial(contenders.steepest_step, sp.Adam)
    wrong = functools.partial(contenders.steepest_step, functools.partial(sp.Adam, lr=2e-3))
    arrays = contenders.Arrays(2, 100)
    with pytest.raises(peers.benchmarks.WrongAnswerError, match="peer differs from ours"):
        peers.run(peers.Case(lambda: contenders.contest({"ours": right, "peer": wrong}, arrays)), 0.0)


def test_contenders_share_their_arrays(peers: Any) -> None:
    contest = peers.CASES["adamw/1000/stream"].make()
    step, stream = contest["ours"].call.func.__self__, contest["stream"].call.args[0]
    inside = step.param_groups[0]["params"], *peers.benchmarks.state_arrays(step)
    assert len(inside) == 3 and all(a is b for a, b in zip(inside, stream, strict=True))


def test_rounds_end_with_the_time(peers: Any) -> None:
    clock = itertools.count()
    contender = peers.benchmarks.Contender(lambda: next(clock), list)
    result = peers.run(peers.Case(lambda: {"ours": contender, "peer": contender}), 0.0)
    assert result["rounds"] == peers.FEWEST and result["interval"][0] <= result["figure"] <= result["interval"][1]


def test_a_run_is_added_to_the_file(
    peers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.json"
    file.write_text('{"results": {"older@1": {}}}')
    absent = peers.Case(dict, needs=("steepest_absent",))
    monkeypatch.setitem(peers.CASES, "absent", absent)
    arguments = ["--quick", "--threads", "1", "--json", str(file), "--only", "adamw/1000/out=", "absent"]
    monkeypatch.setattr(sys, "argv", ["peers.py", *arguments])
    assert peers.main() == 0
    results = json.loads(file.read_text())["results"]
    assert list(results) == ["older@1", "adamw/1000/out=@1", "absent@1"]
    measured = results["adamw/1000/out=@1"]
    assert list(measured["seconds"]) == ["ours", "out="] and measured["rounds"] >= peers.FEWEST
    assert "skipped: steepest_absent not installed" in capsys.readouterr().out


def test_nothing_chosen_is_refused(peers: Any) -> None:
    with pytest.raises(SystemExit, match="no contest matches sdg; --list names them all"):
        peers.chosen(["sdg"])
