"""Codecs in a traced step: which calls encode and decode, and the same codec for a part of its arrays."""

from collections.abc import Callable
from typing import Any, NamedTuple

from ..tracing.calls import ByWindow, meaning_of, named_call


class _CodecFields(NamedTuple):
    kind: str
    whole: tuple[int, ...]
    order: tuple[int, ...]
    make: Callable[[tuple[int, ...], tuple[int, ...], bool], Callable[..., Any]]


class CodecCall(_CodecFields, ByWindow):
    """What a call of a codec does.

    Attributes:
      kind: "encode": (array, key, starts) -> codes, scales; "decode": (codes, scales) -> array; "write":
        (parameter, value, key, starts) -> update, residual; "read": (parameter, residual) -> value.
      whole: the shape of the array that the random bits are for; () where there are none.
      order: of the scales' axes; () where there are none.
      make: (order, whole, apart) -> the function, for parts too; `apart`: are its arrays in memory, and not
        computed on the way?
    """

    __slots__ = ()

    @property
    def writes(self) -> bool:
        """Does it make what is kept, of arrays, a key, and starts along each axis?"""
        return self.kind in ("encode", "write")

    @property
    def writes_blocks(self) -> bool:
        """Does it make codes of blocks, with scales?"""
        return self.kind == "encode" and bool(self.order)

    @property
    def arrays(self) -> int:
        """How many operands of a call that writes are arrays: the first ones."""
        return 1 if self.kind == "encode" else 2

    def read(self, operands: list[Any], order: tuple[int, ...]) -> tuple[Any]:
        """A call that reads, with its scales' axes in another order."""
        codes, *rest = operands
        return (self.make(order, (), True)(codes, rest[0] if rest else None),)

    def write(
        self, operands: list[Any], starts: tuple[Any, ...], order: tuple[int, ...], whole: tuple[int, ...]
    ) -> tuple[Any, ...]:
        """A call that writes, of a part that begins at `starts` in an array of shape `whole`."""
        made = self.make(order, whole, True)(*operands[: self.arrays], operands[self.arrays], starts)
        return tuple(x for x in made if x is not None)


def codec_call(function: Callable[..., Any], name: str, identity: Any, does: CodecCall) -> Callable[..., Any]:
    """A jit of a codec that `codec_of` recognizes.

    Args:
      function: the codec.
      name: of the format.
      identity: all that distinguishes it from others of that format.
      does: what a call of it does.
    """
    return named_call(function, f"{'encode' if does.writes else 'decode'}_{name}", identity, does)


def codec_of(equation: Any) -> CodecCall | None:
    """What an equation of a jaxpr does, if it calls a codec."""
    meaning = meaning_of(equation)
    return meaning if isinstance(meaning, CodecCall) else None
