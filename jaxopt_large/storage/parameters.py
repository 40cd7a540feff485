"""Parameters in bfloat16 that do not freeze: rounded at random, or with a residual in the state."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float32, Int8, UInt32

from .._window import Window
from ..passes.codecs import CodecCall, codec_call
from .bfloat16 import round_stochastically
from .random import random_bits

_LOWER = 16  # bits of a float32 that a bfloat16 has not
_HALF = 2 ** (_LOWER - 1)  # the farthest that a float32 lies from its bfloat16, in units of its last place


class ParameterFormat(Protocol):
    """How a bfloat16 parameter is kept; made by `jl.rounded()` or `jl.split()`."""

    name: ClassVar[str]

    def residual(self, p: BFloat16[Array, "..."]) -> Any:
        """What the state holds of a parameter: None, or an array of its shape."""

    def read(self, p: BFloat16[Array, "..."], residual: Any) -> Float32[Array, "..."]:
        """The value that the rule sees."""

    def write(
        self, p: BFloat16[Array, "..."], value: Float32[Array, "..."], bits: UInt32[Array, "..."]
    ) -> tuple[Float32[Array, "..."], Any]:
        """The update that takes the parameter to its new value, and the new residual."""


@dataclasses.dataclass(frozen=True)
class Rounded:
    name: ClassVar[str] = "rounded"

    def residual(self, p: BFloat16[Array, "..."]) -> None:
        del p

    def read(self, p: BFloat16[Array, "..."], residual: None) -> Float32[Array, "..."]:
        del residual
        return p.astype(jnp.float32)

    def write(
        self, p: BFloat16[Array, "..."], value: Float32[Array, "..."], bits: UInt32[Array, "..."]
    ) -> tuple[Float32[Array, "..."], None]:
        update, _ = _step_to(p, round_stochastically(value, bits).astype(jnp.float32))
        return update, None


@dataclasses.dataclass(frozen=True)
class Split:
    name: ClassVar[str] = "split"

    def residual(self, p: BFloat16[Array, "..."]) -> Int8[Array, "..."]:
        return jnp.zeros_like(p, dtype=jnp.int8)

    def read(self, p: BFloat16[Array, "..."], residual: Int8[Array, "..."]) -> Float32[Array, "..."]:
        word = _word(p.astype(jnp.float32)) + (residual.astype(jnp.int32) << 8)
        return jax.lax.bitcast_convert_type(word, jnp.float32)

    def write(
        self, p: BFloat16[Array, "..."], value: Float32[Array, "..."], bits: UInt32[Array, "..."]
    ) -> tuple[Float32[Array, "..."], Int8[Array, "..."]]:
        update, new = _step_to(p, _rounded(value))
        away = _word(value) - _word(new)
        rounded = (away + (bits & jnp.uint32(0xFF)).astype(jnp.int32)) >> 8
        near = jnp.isfinite(value) & (away >= -_HALF) & (away <= _HALF)
        return update, jnp.where(near, jnp.minimum(rounded, 127), 0).astype(jnp.int8)


def rounded() -> Rounded:
    r"""Rounds bfloat16 parameters up or down at random, so that they are right in the mean.

    A step of less than half the distance between two numbers, which rounding to nearest drops, moves
    the parameter by a whole one with the matching probability. Nothing is kept besides: 2 bytes per
    parameter.

    >>> rule = jl.stored(jl.gradient_descent(1e-3), params=jl.rounded())
    >>> p = jnp.ones(4096, jnp.bfloat16)
    >>> updates, _ = rule.update(-p, rule.init(p), p)
    >>> bool(abs(jnp.mean(updates) - 1e-3) < 3e-4), float(jnp.max(updates))  # numbers are 1/128 apart
    (True, 0.0078125)
    """
    return Rounded()


def split() -> Split:
    r"""Keeps 8 more bits of each bfloat16 parameter in the state: 3 bytes per parameter.

    The rule sees float32 values $w$. With $p$ the nearest bfloat16 and both read as integers,
    $d = w - p \in [-2^{15}, 2^{15}]$ and the residual is $\lfloor (d + r) / 2^8 \rfloor$ with $r$ uniform
    in $[0, 2^8)$, at most 127: a relative error of at most $2^{-15}$, right in the mean.

    >>> rule = jl.stored(jl.gradient_descent(1e-3), params=jl.split())
    >>> p = jnp.ones(3, jnp.bfloat16)
    >>> updates, state = rule.update(-p, rule.init(p), p)
    >>> updates.tolist(), bool(jnp.all(state.residuals > 0))
    ([0.0, 0.0, 0.0], True)
    """
    return Split()


def read(format: ParameterFormat, p: Array, residual: Any) -> Float32[Array, "..."]:
    """`format.read`, as a jit of its own name."""
    return _reader(format)(p, residual)


def write(
    format: ParameterFormat, p: Array, value: Array, key: UInt32[Array, ""], window: Window | None = None
) -> tuple[Float32[Array, "..."], Any]:
    """`format.write` with the bits that a leaf draws from `key`, as a jit of its own name."""
    whole, starts = window or Window(p.shape, (0,) * p.ndim)
    return _writer(format, whole)(p, value, key, starts)


@functools.cache
def _reader(format: ParameterFormat) -> Callable[..., Any]:
    def decode(p: Array, residual: Any) -> Array:
        return format.read(p, residual)

    return codec_call(decode, format.name, format, CodecCall("read", (), (), lambda *_: _reader(format)))


@functools.cache
def _writer(format: ParameterFormat, whole: tuple[int, ...]) -> Callable[..., Any]:
    def encode(p: Array, value: Array, key: Array, starts: tuple[Any, ...]) -> tuple[Array, Any]:
        return format.write(p, value, random_bits(key, p.shape, Window(whole, starts)))

    codec = CodecCall("write", whole, (), lambda order, whole, apart: _writer(format, whole))
    return codec_call(encode, format.name, (format, whole), codec)


def _word(x: Float32[Array, "..."]) -> Array:
    return jax.lax.bitcast_convert_type(x, jnp.int32)


def _rounded(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """The nearest bfloat16, in float32: of a cast there and back compilers make nothing."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def _step_to(
    p: BFloat16[Array, "..."], wanted: Float32[Array, "..."]
) -> tuple[Float32[Array, "..."], Float32[Array, "..."]]:
    """The update u, and the bfloat16 nearest to p + u: almost always `wanted`, itself one.

    Their difference is exact unless they are more than 16 powers of two apart.
    """
    wide = p.astype(jnp.float32)
    update = wanted - wide
    return update, _rounded(wide + update)
