"""What belongs to a neighbour is imported only when asked for, and says what to install where it is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

NEIGHBOURS = {
    "steepest.onnx": ("onnx", 'pip install "steepest[onnx]"'),
    "steepest.sklearn": ("sklearn", 'pip install "steepest[sklearn]"'),
    "steepest.torch": ("torch", "pip install torch"),
    "steepest.tune": ("optuna", 'pip install "steepest[tune]"'),
}


def printed(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_core_imports_none_of_them() -> None:
    others = {package for package, _ in NEIGHBOURS.values()} | {"scipy", "matplotlib", "jax", "onnxruntime", "pandas"}
    code = "import sys, steepest, steepest.cli; print(*(name for name in sys.modules if '.' not in name))"
    assert others.isdisjoint(printed(code).split())


@pytest.mark.parametrize("module", NEIGHBOURS)
def test_without_one_an_error_says_what_to_install(module: str) -> None:
    package, remedy = NEIGHBOURS[module]
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        f"try:\n    import {module}\nexcept ImportError as error:\n    print(error)"
    )
    assert remedy in printed(code)
