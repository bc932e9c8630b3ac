"""The build: what is in the objects of each ISA, and the flags that make results exact."""

from __future__ import annotations

import importlib.metadata
import itertools
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import steepest as sp
from steepest import _core

ROOT = Path(__file__).parents[1]
CMAKE = (ROOT / "CMakeLists.txt").read_text() if (ROOT / "CMakeLists.txt").exists() else ""
SOURCES = sorted((ROOT / "cpp" / "kernels").glob("*.cpp"))
QUANTIZED = ROOT / "cpp" / "kernels" / "quantized.cpp"

pytestmark = pytest.mark.skipif(not CMAKE or not SOURCES, reason="the sources are not here")

# The instruction sets that the compiler may use with the flags of an ISA, beyond SSE2: the macros it defines. What the
# first three imply is older than they are, and every CPU that has them has it.
MACROS = {
    "sse2": set(),
    "avx2": {"AVX", "AVX2"},
    "avx512": {"AVX", "AVX2", "AVX512F", "AVX512DQ", "AVX512BW", "AVX512VL"},
}
IMPLIED = {"SSE3", "SSSE3", "SSE4_1", "SSE4_2", "POPCNT", "CRC32", "XSAVE", "FMA", "F16C", "EVEX256", "EVEX512"}


def setting(name: str) -> list[str]:
    """What CMakeLists.txt sets a variable to, in the branch of gcc and clang."""
    found = re.findall(rf"set\({name}\b *([^)]*)\)", CMAKE)
    assert found, name
    return str(found[-1]).split()


def compilers() -> list[str]:
    return [name for name in ("g++", "clang++") if shutil.which(name)]


def run(*command: str | Path) -> str:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


def flags(isa: str) -> list[str]:
    return ["-std=c++17", "-fPIC", *setting("exact"), *setting("kernel"), *setting(f"flags_{isa}")]


needs_x86_tools = pytest.mark.skipif(
    platform.machine() != "x86_64" or not sys.platform.startswith("linux") or not compilers() or not shutil.which("nm"),
    reason="no compiler for x86-64, or no nm",
)


def test_versions_agree() -> None:
    assert sp.__version__ == _core.__version__ == importlib.metadata.version("steepest")


def test_fast_math_is_never_used() -> None:
    texts = [CMAKE, (ROOT / "pyproject.toml").read_text()]
    assert not any(word in text for text in texts for word in ("fast-math", "-Ofast", "unsafe-math", "-march"))
    assert {"-ffp-contract=off", "-O3"} <= set(setting("exact"))
    assert "NO_EXTRAS" in CMAKE and "INTERPROCEDURAL" not in CMAKE and "-flto" not in CMAKE


@needs_x86_tools
@pytest.mark.parametrize("compiler", compilers())
@pytest.mark.parametrize("isa", MACROS)
def test_flags_allow_what_the_dispatcher_probes_for(tmp_path: Path, compiler: str, isa: str) -> None:
    (tmp_path / "empty.cpp").touch()
    wide = re.compile(r"#define __((?:SSE|SSSE|AVX|FMA|F16C|POPCNT|CRC32|XSAVE|EVEX|BMI|LZCNT|MOVBE)\w*?)__ ")

    def macros(*extra: str) -> set[str]:
        return set(wide.findall(run(compiler, *extra, "-dM", "-E", tmp_path / "empty.cpp")))

    allowed = macros(*setting(f"flags_{isa}")) - macros()
    assert allowed - IMPLIED == MACROS[isa]
    probes = re.search(rf"bool has_{isa}\(\) \{{(.*?)\n?\}}", (ROOT / "cpp" / "dispatch.cpp").read_text(), re.DOTALL)
    assert probes
    bits = {"avx2": ["avx", "fma", "avx2"], "avx512": ["f", "dq", "bw", "vl"]}.get(isa, [])
    assert re.findall(r"\b(\w+) = 1u << ", probes[1]) == bits


@needs_x86_tools
def test_fast_math_is_an_error() -> None:
    for source in SOURCES:
        with pytest.raises(subprocess.CalledProcessError) as error:
            run(compilers()[0], "-std=c++17", "-ffast-math", "-DSTEEPEST_ISA=sse2", "-fsyntax-only", source)
        assert "without -ffast-math" in error.value.stderr


WIDER = {  # instructions, or registers, that only a wider ISA has
    "sse2": re.compile(r"%[yz]mm|\tv[a-z]"),
    "avx2": re.compile(r"%zmm|%[xy]mm(?:1[6-9]|2[0-9]|3[01])|%k[0-7]"),
    "avx512": re.compile(r"(?!)"),
}
ITS_OWN = {"sse2": "%xmm", "avx2": "%ymm", "avx512": "%zmm"}


@needs_x86_tools
@pytest.mark.slow
@pytest.mark.parametrize("level", ["-O0", "-O3"])
@pytest.mark.parametrize("compiler", compilers())
def test_the_linker_finds_nothing_to_share_between_isas(tmp_path: Path, compiler: str, level: str) -> None:
    """A weak symbol would let it hand an AVX-512 copy to an SSE2 machine. At -O0 nothing is inlined away."""

    def check(choice: tuple[str, Path]) -> None:
        isa, source = choice
        target = tmp_path / f"{source.stem}_{isa}.o"
        run(compiler, *flags(isa), level, f"-DSTEEPEST_ISA={isa}", "-c", source, "-o", target)
        symbols = [line.split()[-2:] for line in run("nm", target).splitlines()]
        shared = {name for kind, name in symbols if kind not in "tdrbU"}
        assert shared and all(re.search(rf"\w+_f(32|64)_{isa}E?$", name) for name in shared), shared
        assert {name for kind, name in symbols if kind == "U"} <= {"memcpy", "memset", "fma", "__popcountdi2"}
        if level == "-O3" and isa in WIDER and shutil.which("objdump"):
            code = run("objdump", "-d", "--no-show-raw-insn", target)
            assert ITS_OWN[isa] in code
            assert not WIDER[isa].search(code)

    sources = SOURCES if level == "-O0" else SOURCES[:1]  # one is enough: they take long
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(check, [*itertools.product(MACROS, sources), ("avx512vnni", QUANTIZED)]))
