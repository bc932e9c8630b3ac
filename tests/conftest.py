"""What all tests share."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import hypothesis
import pytest

from steepest import _core, verify

# The same examples in every run, however slow the machine.
hypothesis.settings.register_profile("steepest", deadline=None, derandomize=True)
hypothesis.settings.load_profile("steepest")

# A shell lets what it starts in the background ignore Ctrl-C, and so would the programs that the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _settings_restored() -> Iterator[None]:
    """Leaves ISA, engine and threads as a test found them."""
    with verify.settings_restored():
        yield


@pytest.fixture(params=_core.build_info()["isas"])
def isa(request: pytest.FixtureRequest) -> str:
    """Each ISA that this machine has, in force."""
    name: str = request.param
    _core._set_isa(name)
    return name
