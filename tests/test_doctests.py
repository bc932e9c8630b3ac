"""The examples in the docstrings of the installed package, and in the README."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import steepest
from steepest import losses, reference, schedules

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = sorted(m.name for m in pkgutil.walk_packages(steepest.__path__, "steepest."))
NEEDS = {"steepest.torch": "torch", "steepest.sklearn": "sklearn", "steepest.onnx": "onnx", "steepest.tune": "optuna"}


@pytest.mark.parametrize("name", ["steepest", *MODULES])
def test_examples_of_the_docstrings_hold(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    module = importlib.import_module(name)
    assert doctest.testmod(module, optionflags=OPTIONS).failed == 0


def test_every_rule_loss_and_schedule_has_an_example() -> None:
    public = [steepest.minimize, *(getattr(steepest, name) for name in steepest.__all__ if name in reference.RULES)]
    for module in (losses, schedules):
        functions = inspect.getmembers(module, inspect.isfunction)
        public += [f for name, f in functions if f.__module__ == module.__name__ and not name.startswith("_")]
    assert len(public) > 20
    assert [f.__name__ for f in public if ">>>" not in (f.__doc__ or "")] == []


def test_examples_of_the_readme_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They run, one after the other, and print what stands beside each print."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text("utf-8"), re.S)
    names: dict[str, Any] = {name: np.ones(3) for name in ("W", "b", "dW", "db")} | {
        "schedule": schedules.constant(0.1)
    }
    for block in blocks:
        exec(block, names)
    expected = [line for block in blocks for line in re.findall(r"^ *print\(.*\) +# (.*)$", block, re.M)]
    assert expected and capsys.readouterr().out.splitlines() == expected
