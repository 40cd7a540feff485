"""float32: no format, to make exceptions with."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from ._format import Format


@dataclasses.dataclass(frozen=True)
class Float32(Format):
    name: ClassVar[str] = "float32"
    blocks: ClassVar[bool] = False
    bits: ClassVar[int] = 32

    def to_codes(self, x: Array, bits: Callable[[], Array]) -> Array:
        del bits
        return x

    def from_codes(self, codes: Array) -> Array:
        return codes.astype(jnp.float32)


def float32() -> Float32:
    """Keeps a field as it is: 4 bytes per element.

    >>> mapping = {"*embed*": jl.float32(), "*": jl.int8()}
    >>> mapping["*embed*"].bytes((1024, 1024))
    4194304
    """
    return Float32()
