"""float8 (e4m3) with block scales: 1.03 bytes per element."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._format import Format, stochastic_codes
from .random import uniform

_MOST = 256.0  # a power of two, so that nothing is rounded besides; e4m3 goes to 448
_MOST_CODE = 120  # its bits


@dataclasses.dataclass(frozen=True)
class Float8(Format):
    name: ClassVar[str] = "float8"
    bits: ClassVar[int] = 8

    def to_codes(self, x: Array, bits: Callable[[], Array]) -> Array:
        if self.signed is not False:
            return (x * _MOST).astype(jnp.float8_e4m3fn)
        root = jnp.sqrt(x)
        nearest = jax.lax.bitcast_convert_type((root * _MOST).astype(jnp.float8_e4m3fn), jnp.uint8)
        low = nearest.astype(jnp.int32)
        low = jnp.clip(low - (_value(low) > x).astype(jnp.int32), 1, _MOST_CODE - 1)
        code = stochastic_codes(x, low, _value, uniform(bits()))
        return jax.lax.bitcast_convert_type(code.astype(jnp.uint8), jnp.float8_e4m3fn)

    def from_codes(self, codes: Array) -> Array:
        if self.signed is not False:
            return codes.astype(jnp.float32) * (1 / _MOST)
        return _value(jax.lax.bitcast_convert_type(codes, jnp.uint8).astype(jnp.int32))


def float8(*, signed: bool | None = None) -> Float8:
    r"""e4m3 and a float32 scale for each block of 128 along the last axis: 1.03 bytes per element.

    $x \approx a \cdot e / 256$ with $a$ the block's largest magnitude: relative error at most 2^-4, and at
    most $2^{-18} a$ near 0. Second moments are kept as square roots (error up to 2^-2), without 0, rounded at
    random so that they are right in the mean. Coarser than `int8` near the maximum, finer far below it.

    Args:
      signed: has the field both signs? By default `stored` finds out from the rule.

    >>> encoded = jl.float8().encode(jnp.array([0.5, -1.0]))
    >>> jl.float8().decode(encoded).tolist()
    [0.5, -1.0]
    """
    return Float8(signed=signed)


def _value(code: Array) -> Array:
    """The square of the number with these bits, in units of the largest."""
    number = jax.lax.bitcast_convert_type(code.astype(jnp.uint8), jnp.float8_e4m3fn)
    return jnp.square(number.astype(jnp.float32) * (1 / _MOST))
