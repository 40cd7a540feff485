"""int8 with block scales: 1.03 bytes per element."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from ._format import Format, stochastic_codes
from ._maps import from_fourth_root, from_softsign, to_fourth_root, to_softsign
from .random import uniform

_MOST, _MOST_UNSIGNED = 127, 255


@dataclasses.dataclass(frozen=True)
class Int8(Format):
    name: ClassVar[str] = "int8"
    bits: ClassVar[int] = 8

    def to_codes(self, x: Array, bits: Callable[[], Array]) -> Array:
        if self.signed is False:
            low = to_fourth_root(x, _MOST_UNSIGNED)
            return stochastic_codes(x, low, _from_unsigned, uniform(bits())).astype(jnp.uint8)
        return jnp.round(to_softsign(x, _MOST)).astype(jnp.int8)

    def from_codes(self, codes: Array) -> Array:
        wide = codes.astype(jnp.float32)
        return _from_unsigned(wide) if self.signed is False else from_softsign(wide, _MOST)


def int8(*, signed: bool | None = None) -> Int8:
    r"""8 bits per element and a float32 scale for each block of 128 along the last axis: 1.03 bytes.

    With $a$ the largest magnitude of a block and $n = x / a$, a field of both signs (momentum) is

    $$q = \mathrm{round}\!\left(127 \cdot \frac{2 n}{1 + |n|}\right), \qquad
      x \approx a \, \frac{z}{2 - |z|}, \quad z = q / 127,$$

    finer near 0; an error of at most $a (1 + |n|)^2 / 500$. A field that is never negative (second
    moments) is

    $$q \approx 255 \, n^{1/4} \in \{1 \dots 255\}, \qquad x \approx a \, (q / 255)^4,$$

    rounded up or down at random so that $x$ is right in the mean; the error is at most the distance to
    the next code, below $((n^{1/4} + 1/255)^4 - n) \, a$. There is no code for 0: beside a
    momentum that is not 0, a second moment of 0 would give a step without bound.

    A block that holds a NaN, an infinity or more than 8.5e37 decodes to NaN. Blocks whose maximum is
    below 1e-30 (1e-37 where nothing is negative) are 0.

    Args:
      signed: which of the two; by default `stored` finds out from the rule.

    Source: the code maps are those measured best among softsign, linear, dynamic and root maps; the
    idea of blocks is Dettmers et al. 2022, arXiv:2110.02861.

    >>> encoded = jl.int8().encode(jnp.array([0.0, 0.5, -1.0]))
    >>> encoded.codes.tolist(), [round(x, 2) for x in jl.int8().decode(encoded).tolist()]
    ([0, 85, -127], [0.0, 0.5, -1.0])
    """
    return Int8(signed=signed)


def _from_unsigned(code: Array) -> Array:
    return from_fourth_root(code, _MOST_UNSIGNED)
