"""Every example runs with `--quick`, and so its claim, which it asserts itself, holds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = sorted(path.stem for path in FOLDER.glob("*.py"))
FASHION = Path("/usr/share/datasets/fashion-mnist")


def run(name: str, *options: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", str(FOLDER / f"{name}.py"), *options],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=cwd,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_example_keeps_its_claim(name: str, tmp_path: Path) -> None:
    if name.startswith("fashion") and not FASHION.is_dir():
        pytest.skip("needs Fashion-MNIST: apt-get install dataset-fashion-mnist")
    if name == "memory_map" and sys.platform != "linux":
        pytest.skip("limits the memory as Linux does")
    if name == "tune_on_postgresql":
        pytest.importorskip("psycopg")
    result = run(name, "--quick", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout and not result.stderr


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name.startswith("fashion")])
def test_missing_data_set_is_named_with_the_package_that_brings_it(name: str, tmp_path: Path) -> None:
    result = run(name, "--quick", "--data", str(tmp_path), cwd=tmp_path)
    assert result.returncode == 2
    assert str(tmp_path) in result.stderr and "apt-get install dataset-fashion-mnist" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_shows_its_output_and_asserts_its_claim(name: str) -> None:
    text = (FOLDER / f"{name}.py").read_text()
    docstring = text.split('"""')[1]
    assert re.search(rf"^    \$ python examples/{name}\.py\n {{4,}}\S", docstring, re.MULTILINE)
    assert re.search(r"^ *assert .*[<>=]", text, re.MULTILINE)
