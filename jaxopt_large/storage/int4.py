"""int4 with block scales: half a byte per element, and lossy."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from ._format import Format, stochastic_codes
from ._maps import from_fourth_root, from_softsign, to_fourth_root, to_softsign
from .random import uniform

_MOST, _MOST_UNSIGNED = 7, 15


@dataclasses.dataclass(frozen=True)
class Int4(Format):
    name: ClassVar[str] = "int4"
    bits: ClassVar[int] = 4

    def to_codes(self, x: Array, bits: Callable[[], Array]) -> Array:
        if self.signed is False:
            low = to_fourth_root(x, _MOST_UNSIGNED)
            return stochastic_codes(x, low, _from_unsigned, uniform(bits())).astype(jnp.uint4)
        low = jnp.clip(jnp.floor(to_softsign(x, _MOST)), -_MOST, _MOST - 1)
        return stochastic_codes(x, low, _from_signed, uniform(bits())).astype(jnp.int4)

    def from_codes(self, codes: Array) -> Array:
        wide = codes.astype(jnp.float32)
        return _from_unsigned(wide) if self.signed is False else _from_signed(wide)


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


def _from_signed(code: Array) -> Array:
    return from_softsign(code, _MOST)


def _from_unsigned(code: Array) -> Array:
    return from_fourth_root(code, _MOST_UNSIGNED)
