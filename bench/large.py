"""A step over more than 2^31 elements: `python bench/large.py`, with some 19 GB of free memory.

SGD of one float32 array of 2^31 + 4,099 elements. Every element is compared, in parts, with what the
formula gives; the tail and the elements around 2^31 are where an index of 32 bits would go wrong.
"""

from __future__ import annotations

import time

import numpy as np

import steepest as sp
from peers import asked

N, PART = 2**31 + 4099, 1 << 24


def main() -> None:
    asked(__doc__)
    p, g = np.empty(N, np.float32), np.empty(N, np.float32)
    rng = np.random.default_rng(0)
    tile = rng.standard_normal(PART + 1, np.float32)  # odd: no two parts are alike
    for i in range(0, N, PART + 1):
        part = slice(i, min(i + PART + 1, N))
        p[part] = i // PART
        g[part] = tile[: part.stop - i]
    optimizer = sp.SGD(p, lr=0.5)
    start = time.perf_counter()
    optimizer.step(g)
    took = time.perf_counter() - start
    for i in range(0, N, PART + 1):
        part = slice(i, min(i + PART + 1, N))
        expected = np.float32(i // PART) - np.float32(0.5) * tile[: part.stop - i]
        assert np.array_equal(p[part], expected), f"elements from {i:,} on differ"
    print(f"{N:,} elements in {took:.2f} s, {12 * N / took / 1e9:.1f} GB/s: all as by the formula")
    norm = sp.global_norm([g])
    exact = np.sqrt(sum(float(np.square(g[i : i + PART], dtype=np.float64).sum()) for i in range(0, N, PART)))
    assert abs(norm - exact) <= 1e-6 * exact
    print(f"global norm {norm:.6f}, in float64 {exact:.6f}")


if __name__ == "__main__":
    main()
