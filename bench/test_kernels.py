"""Every kernel against its NumPy formula: `pytest bench/test_kernels.py --sizes 1000,1000000`.

`numpy` is the formula as people write it, `out=` with preallocated arrays. Answers are compared before
anything is timed; extra_info says how many bytes per element are counted.
"""

from __future__ import annotations

from typing import Any

import pytest

from steepest import benchmarks


@pytest.mark.parametrize("contender", benchmarks.NAMES)
@pytest.mark.parametrize("kernel", benchmarks.KERNELS)
def test_kernel(kernel: str, n: int, contender: str, benchmark: Any) -> None:
    if not benchmarks.fits(n):
        pytest.skip(f"too little memory for {n:,} elements")
    contenders = benchmarks.KERNELS[kernel].make(n)
    if contender not in contenders:
        pytest.skip(f"{kernel} is not written with {contender}")
    benchmarks.check(contenders)
    benchmark.group = f"{kernel} {n:,}"
    benchmark.extra_info["bytes per element"] = benchmarks.KERNELS[kernel].bytes
    call = contenders[contender].call
    call()
    benchmark(call)


@pytest.mark.parametrize("kernel", benchmarks.KERNELS)
def test_stream(kernel: str, n: int, benchmark: Any) -> None:
    benchmark.group = f"{kernel} {n:,}"
    benchmark(benchmarks.stream(benchmarks.KERNELS[kernel], n))
