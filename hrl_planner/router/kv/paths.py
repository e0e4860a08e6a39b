"""Path keys: one number for a block and all blocks before it.

The radix tree keeps one such number per node, the first that any worker gave it, and a worker that
names the node by another cannot remove its block again. Engines' own hashes may differ from engine
to engine (vLLM seeds them at random), so the index makes its own, modulo 2**64: `parent's key *
multiplier + block hash`. Each process draws its multiplier: no client can aim at a collision.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_MULTIPLIER = secrets.randbits(64) | 1  # odd, hence invertible
_INVERSE = pow(_MULTIPLIER, -1, 2**64)
_powers = np.ones(1, dtype=np.uint64)
_inverse_powers = np.ones(1, dtype=np.uint64)


def path_keys(hashes: Sequence[int], parent: int = 0) -> NDArray[np.uint64]:
    """Key of each block of a run that follows the block `parent`, or starts a prompt."""
    global _powers, _inverse_powers
    if len(_powers) < len(hashes):
        _powers = _first_powers(_MULTIPLIER, 2 * len(hashes))
        _inverse_powers = _first_powers(_INVERSE, 2 * len(hashes))
    count = len(hashes)
    # Horner's scheme for all prefixes at once: divide by the powers, sum, multiply.
    sums = np.cumsum(np.array(hashes, dtype=np.uint64) * _inverse_powers[:count], dtype=np.uint64)
    before = np.uint64(parent * _MULTIPLIER % 2**64)
    return (sums + before) * _powers[:count]


def _first_powers(base: int, count: int) -> NDArray[np.uint64]:
    factors = np.full(count, base, dtype=np.uint64)
    factors[0] = 1
    return np.cumprod(factors)
