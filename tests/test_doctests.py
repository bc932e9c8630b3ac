"""The examples in the docstrings of the installed package, and in the README."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import steepest

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = sorted(m.name for m in pkgutil.walk_packages(steepest.__path__, "steepest."))
NEEDS = {"steepest.torch": "torch", "steepest.sklearn": "sklearn", "steepest.onnx": "onnx"}


@pytest.mark.parametrize("name", ["steepest", *MODULES])
def test_examples_of_the_docstrings_hold(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    module = importlib.import_module(name)
    assert doctest.testmod(module, optionflags=OPTIONS).failed == 0


def test_examples_of_the_readme_hold() -> None:
    readme = Path(__file__).parents[1] / "README.md"
    assert doctest.testfile(str(readme), module_relative=False, optionflags=OPTIONS).failed == 0
