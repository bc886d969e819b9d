"""Counter-based randomness: the n-th draw of a seed is a pure function of (seed, n).

So a sample does not depend on what else is in the batch, nor on the order of arrival.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_MASK = (1 << 64) - 1


def uniforms(
    seeds: npt.NDArray[np.uint64], counts: npt.NDArray[np.uint64]
) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1), 53 bits: draw `counts[i]` of `seeds[i]`; [R], [R] -> [R].

    The seed is mixed before the counter is added, else draw n of seed s and draw n - 1 of seed
    s + 0x9E37... would be equal. The mixing is the finalizer of splitmix64 (Steele, Lea, Flood
    2014, "Fast splittable pseudorandom number generators").

    >>> uniforms(np.array([7, 7], np.uint64), np.array([0, 1], np.uint64)).round(3).tolist()
    [0.456, 0.722]
    """
    bits = _mix(_mix(seeds + _GOLDEN) + counts * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def as_seed(seed: int) -> np.uint64:
    """Any integer as 64 bits; negative ones by two's complement."""
    return np.uint64(seed & _MASK)


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))
