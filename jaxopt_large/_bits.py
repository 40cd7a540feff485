"""Mixing of bits: what checksums and random bits are made of."""

from typing import Any

import numpy as np
from jaxtyping import UInt32


def mix(h: UInt32[Any, "..."]) -> UInt32[Any, "..."]:
    """The finalizer of MurmurHash3: every bit of the input moves half the bits of the output; NumPy's too."""
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return h ^ (h >> np.uint32(16))
