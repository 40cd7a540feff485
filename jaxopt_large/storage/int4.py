"""int4 with block scales: half a byte per element, and lossy."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from ._format import Format, stochastic_codes
from ._random import uniform

_MOST, _MOST_UNSIGNED = 7, 15


@dataclasses.dataclass(frozen=True)
class Int4(Format):
    name: ClassVar[str] = "int4"
    bits: ClassVar[int] = 4

    def to_codes(self, x: Array, scale: Array | None, bits: Callable[[], Array]) -> Array:
        del scale
        if self.signed is False:
            low = jnp.clip(jnp.floor(_MOST_UNSIGNED * jnp.sqrt(jnp.sqrt(x))), 1, _MOST_UNSIGNED - 1)
            return stochastic_codes(x, low, _fourth_power, uniform(bits())).astype(jnp.uint4)
        low = jnp.clip(jnp.floor(_MOST * 2 * x / (1 + jnp.abs(x))), -_MOST, _MOST - 1)
        return stochastic_codes(x, low, _softsign_inverse, uniform(bits())).astype(jnp.int4)

    def from_codes(self, codes: Array) -> Array:
        wide = codes.astype(jnp.float32)
        return _fourth_power(wide) if self.signed is False else _softsign_inverse(wide)


def int4(*, signed: bool | None = None) -> Int4:
    """4 bits per element and a float32 scale for each block of 128: 0.53 bytes. Lossy.

    The maps of `int8` with 15 codes, both rounded at random. Training does not reach the loss of
    float32 with it: an opt-in for where memory is worth more. XLA packs two codes to a byte on TPU and GPU;
    on CPU each takes one.

    Args:
      signed: has the field both signs? By default `stored` finds out from the rule.

    >>> jl.int4().bytes((1024, 1024)) / 2**20
    0.53125
    """
    return Int4(signed=signed)


def _softsign_inverse(code: Array) -> Array:
    return code / (2 * _MOST - jnp.abs(code))


def _fourth_power(code: Array) -> Array:
    z = code * (1 / _MOST_UNSIGNED)
    return jnp.square(jnp.square(z))
