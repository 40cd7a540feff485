"""bfloat16: float32's exponents with 8 bits of mantissa, rounded stochastically."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float32, UInt32

from ._format import Format


@dataclasses.dataclass(frozen=True)
class BFloat16Format(Format):
    stochastic: bool = True

    name: ClassVar[str] = "bfloat16"
    blocks: ClassVar[bool] = False
    bits: ClassVar[int] = 16

    def to_codes(self, x: Array, bits: Callable[[], Array]) -> Array:
        return round_stochastically(x, bits()) if self.stochastic else x.astype(jnp.bfloat16)

    def from_codes(self, codes: Array) -> Array:
        return codes.astype(jnp.float32)


def bfloat16(*, stochastic: bool = True) -> BFloat16Format:
    """2 bytes per element; relative error at most 2^-7 stochastically, 2^-8 to nearest.

    Args:
      stochastic: round up or down at random, so that the stored value is right in the mean. To nearest,
        a second moment with b2 = 0.999 stops following its gradients: each step moves it by less than
        half the distance to the next number.

    >>> encoded = jl.bfloat16(stochastic=False).encode(jnp.array([1.0, 1.001]))
    >>> jl.bfloat16().decode(encoded).tolist()
    [1.0, 1.0]
    """
    return BFloat16Format(stochastic=stochastic)


def round_stochastically(x: Float32[Array, "..."], bits: UInt32[Array, "..."]) -> BFloat16[Array, "..."]:
    """`x` in the mean; to nearest where it is not finite, or would become so."""
    word = jax.lax.bitcast_convert_type(x, jnp.uint32)
    raised = (word + (bits & jnp.uint32(0xFFFF))) & jnp.uint32(0xFFFF0000)
    rounded = jax.lax.bitcast_convert_type(raised, jnp.float32)
    return jnp.where(jnp.isfinite(rounded) & jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)
