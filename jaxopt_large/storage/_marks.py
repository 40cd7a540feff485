"""Calls of codecs, by the names they have in a traced step.

Each codec is a jit with a name of its own. Who runs a traced step in another way finds out here what a
call stands for, and makes it anew for parts of its arrays.
"""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from .._encoded import DECODE, ENCODE


class Mark(NamedTuple):
    """What a call stands for.

    Attributes:
      kind: "encode": (array, key, starts) -> codes, scales; "decode": (codes, scales) -> array; "write":
        (parameter, value, key, starts) -> update, residual; "read": (parameter, residual) -> value.
      whole: the shape of the array that the random bits are for; () where there are none.
      order: of the scales' axes; () where there are none.
      make: (order, whole, apart) -> the function, for parts too; `apart` as in `Format.encode`.
    """

    kind: str
    whole: tuple[int, ...]
    order: tuple[int, ...]
    make: Callable[[tuple[int, ...], tuple[int, ...], bool], Callable[..., Any]]

    @property
    def writes(self) -> bool:
        """Does it make what is kept, of arrays, a key, and starts along each axis?"""
        return self.kind in ("encode", "write")

    @property
    def writes_blocks(self) -> bool:
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


_marks: dict[str, tuple[Any, Mark]] = {}  # name -> what tells codecs apart, and what a call stands for


def marked(function: Callable[..., Any], name: str, what: Any, mark: Mark) -> Callable[..., Any]:
    """A jit of `function` under a name that says what it is; equal codecs have equal names.

    Args:
      function: the codec.
      name: of the format.
      what: all that distinguishes it from others of that format.
      mark: what a call stands for.
    """
    prefix = ENCODE if mark.writes else DECODE
    name = f"{prefix}_{name}_{zlib.crc32(repr(what).encode()):08x}"
    while name in _marks and _marks[name][0] != what:  # another of equal looks
        name += "_"
    function.__name__ = function.__qualname__ = name
    _marks[name] = what, mark
    return jax.jit(function)


def mark_of(equation: Any) -> Mark | None:
    """What an equation of a jaxpr stands for, if it calls a codec."""
    _, mark = _marks.get(str(equation.params.get("name", "")), (None, None))
    return mark if "jaxpr" in equation.params else None
