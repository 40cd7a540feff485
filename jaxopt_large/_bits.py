"""Mixing of bits: what checksums and random bits are made of."""

import jax.numpy as jnp
from jaxtyping import UInt32


def mix(h: UInt32[jnp.ndarray, "..."]) -> UInt32[jnp.ndarray, "..."]:
    """The finalizer of MurmurHash3: every bit of the input moves half the bits of the output."""
    h = (h ^ (h >> jnp.uint32(16))) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> jnp.uint32(13))) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> jnp.uint32(16))
