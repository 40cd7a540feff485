"""What every format offers, and what formats with block scales share."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, UInt32

from .._compat import auto_axes, explicit_sharding
from .._encoded import BLOCK, Coding, Encoded, scale_order, scale_shape
from .._errors import message
from .._partition import devices_along, names_in
from .._window import Window
from ..passes.codecs import CodecCall, codec_call
from ._blocks import block_max, from_blocks, over_blocks, to_blocks
from .random import random_bits

_SMALLEST_SIGNED = 1e-30  # blocks below it are stored as 0: XLA:CPU flushes what is below 1e-38
_LARGEST = 2.0**126  # the inverse of more would be flushed to 0
_SMALLEST_UNSIGNED = 1e-37  # no value of a block that is not 0 decodes to less


@dataclasses.dataclass(frozen=True)
class Format:
    """How a field of the state is kept between steps; made by `jl.int8()` and its like.

    Attributes:
      signed: does the field have values of both signs? None: `stored` finds out.
    """

    signed: bool | None = None

    name: ClassVar[str] = ""
    blocks: ClassVar[bool] = True  # has it scales?
    bits: ClassVar[int] = 32  # of one code

    def encode(
        self,
        x: Float[Array, "..."],
        key: UInt32[Array, ""] | None = None,
        *,
        window: Window | None = None,
    ) -> Encoded:
        """The array in this format.

        Args:
          x: of rank 1 or more.
          key: from which stochastic rounding draws; by default a constant one.
          window: which part of the whole array it is; it must not divide a block.

        Raises:
          ValueError: x is a scalar.
        """
        if x.ndim == 0:
            raise ValueError(
                message(f"{self.name}.encode", "a scalar has no last axis", do="Keep it as it is")
            )
        key = jnp.uint32(0) if key is None else key
        whole, starts = window or Window(x.shape, (0,) * x.ndim)
        order = scale_order(whole) if self.blocks else ()
        run = self._placed(_encoder(self, order, whole, False), x, lambda specs: specs)
        codes, scales = run(x, key, starts)
        return Encoded(codes, scales, Coding(self, str(x.dtype), order))

    def decode(self, x: Encoded) -> Float[Array, "..."]:
        """The array that `encode` was given, but for its rounding."""
        run = self._placed(_decoder(self, x.dtype, x.order), x.codes, lambda specs: specs[0])
        return run(x.codes, x.scales)

    def _placed(self, run: Callable[..., Any], x: Array, out: Callable[[Any], Any]) -> Callable[..., Any]:
        """`run`, among Explicit axes that divide blocks of `x`: its reshapes have no rule for types."""
        sharding = explicit_sharding(x)
        if sharding is None or not self.blocks or not x.ndim:
            return run
        last = sharding.spec[x.ndim - 1] if len(sharding.spec) == x.ndim else None
        if not _divides_blocks(x.shape, last, sharding.mesh):
            return run
        return auto_axes(run, sharding.mesh, out(self.spec(x.shape, sharding.spec, sharding.mesh)))

    def spec(
        self, shape: tuple[int, ...], spec: PartitionSpec, mesh: Any
    ) -> tuple[PartitionSpec, PartitionSpec | None]:
        """The specs of the codes and the scales of an array with a shape and a spec on a mesh.

        Scales are divided like the codes; along the last axis only where no block is.
        """
        if not self.blocks:
            return spec, None
        parts = [*spec, *[None] * (len(shape) - len(spec))]
        if _divides_blocks(shape, parts[-1], mesh):
            parts[-1] = None
        return spec, PartitionSpec(*(parts[axis] for axis in scale_order(shape)))

    def bytes(self, shape: tuple[int, ...]) -> int:
        """What an array of `shape` takes, scales included."""
        codes = math.prod(shape) * self.bits // 8
        scales = math.prod(scale_shape(shape, scale_order(shape))) * 4 if self.blocks else 0
        return codes + scales

    def of_sign(self, signed: bool) -> "Format":
        """This format for a field of values of both signs, or for one that is never negative."""
        return dataclasses.replace(self, signed=signed)

    def to_codes(self, x: Array, bits: Callable[[], Array]) -> Array:
        """Codes of float32 values, in blocks where there are scales.

        Args:
          x: divided by its scale where there are blocks.
          bits: random ones for each element, when called.
        """
        raise NotImplementedError

    def from_codes(self, codes: Array) -> Array:
        """Float32 values, in units of the scale where there are blocks."""
        raise NotImplementedError


def _divides_blocks(shape: tuple[int, ...], last: Any, mesh: Any) -> bool:
    """Does `last`, an entry of a spec, divide blocks of the last axis?"""
    count = devices_along(names_in(last), mesh)
    return count > 1 and shape[-1] % (BLOCK * count) != 0


@functools.cache
def _encoder(
    format: Format, order: tuple[int, ...], whole: tuple[int, ...], apart: bool
) -> Callable[..., Any]:
    """(array, key, starts) -> codes and scales: a jit of its own name, for those who read jaxprs.

    Args:
      format: of the codes.
      order: of the scales' axes.
      whole: the shape of the array that random bits are drawn for.
      apart: is the array in memory, and not computed on the way? It decides how XLA:CPU finds maxima best.
    """

    def encode(x: Array, key: Array, starts: tuple[Any, ...]) -> tuple[Array, Array | None]:
        wide = x.astype(jnp.float32)

        def bits() -> Array:
            return random_bits(key, x.shape, Window(whole, starts))

        if not format.blocks:
            return format.to_codes(wide, bits), None
        view = to_blocks(wide)
        # what is negative where nothing should be is an error that must show
        size = jnp.where(view < 0, jnp.nan, view) if format.signed is False else jnp.abs(view)
        is_one = x.shape[-1] <= BLOCK
        largest = jnp.max(size, axis=-1, keepdims=is_one) if apart else block_max(size, keepdims=is_one)
        smallest = _SMALLEST_UNSIGNED if format.signed is False else _SMALLEST_SIGNED
        # a block with a NaN or an infinity decodes to NaN, all of it
        scale = jnp.where(largest <= _LARGEST, jnp.where(largest < smallest, 0.0, largest), jnp.nan)
        inverse = jnp.where(scale > 0, 1.0 / jnp.where(scale > 0, scale, 1.0), 0.0)
        codes = format.to_codes(view * over_blocks(inverse, view), lambda: to_blocks(bits()))
        return from_blocks(codes, x.shape[-1]), jnp.transpose(scale, order)

    what = (format, order, whole, apart)
    codec = CodecCall("encode", whole, order, functools.partial(_encoder, format))
    return codec_call(encode, format.name, what, codec)


@functools.cache
def _decoder(format: Format, dtype: str, order: tuple[int, ...]) -> Callable[..., Any]:
    """(codes, scales) -> array."""

    def decode(codes: Array, scales: Array | None) -> Array:
        if scales is None:
            return format.from_codes(codes).astype(dtype)
        scale = jnp.transpose(scales, [order.index(axis) for axis in range(len(order))])
        view = to_blocks(codes)
        scale = over_blocks(scale, view)
        x = format.from_codes(view) * scale
        if format.signed is False:  # what is not 0 must not be flushed to 0
            x = jnp.maximum(x, jnp.minimum(scale, _SMALLEST_UNSIGNED))
        return from_blocks(x, codes.shape[-1]).astype(dtype)

    def make(order: tuple[int, ...], whole: tuple[int, ...], apart: bool) -> Callable[..., Any]:
        del whole, apart
        return _decoder(format, dtype, order)

    return codec_call(decode, format.name, (format, dtype, order), CodecCall("decode", (), order, make))


def stochastic_codes(n: Array, low: Array, value: Callable[[Array], Array], u: Array) -> Array:
    """`low` or `low + 1`, so that the decoded value is `n` in the mean.

    Args:
      n: what is to be encoded.
      low: its code, rounded down.
      value: code -> decoded value.
      u: uniform in [0, 1).
    """
    below, above = value(low), value(low + 1)
    return low + (u * (above - below) < n - below).astype(low.dtype)
