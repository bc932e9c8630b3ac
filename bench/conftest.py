from __future__ import annotations

import pytest

SIZES = (1_000, 100_000, 1_000_000, 16_000_000, 64_000_000)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sizes", default=",".join(map(str, SIZES)), help="numbers of elements (default: %(default)s)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "n" in metafunc.fixturenames:
        metafunc.parametrize("n", [int(n) for n in metafunc.config.getoption("sizes").split(",")])
