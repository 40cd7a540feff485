"""A pass on CPU: a loop over parts that stay in cache, which writes in place.

XLA:CPU fuses no reduction with what it is used for: what a block's maximum is taken of, it computes anew
for every use, or writes to memory. Each round here ends by computing what the next one encodes: as a value
carried by the loop it is computed once; and as it is read after the last part is written, buffers stay.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._encoded import BLOCK, scale_shape
from .._slices import variables
from ..storage._by_parts import hidden_zero
from ..storage._marks import Mark, mark_of
from ..storage._regions import Region, regions
from ..storage._words import from_words, to_words
from ._pass import Order, Pass

_MOST = 2**17  # elements of a part: with all that is made of them they stay in a CPU's cache


@dataclasses.dataclass(frozen=True)
class _Part:
    """A box of an array."""

    starts: tuple[Any, ...]
    shape: tuple[int, ...]

    def shape_of(self, order: Order | None) -> tuple[int, ...]:
        return self.shape if order is None else scale_shape(self.shape, order)

    def starts_of(self, order: Order | None) -> tuple[Any, ...]:
        if order is None:
            return self.starts
        where = (*self.starts[:-1], self.starts[-1] // BLOCK)
        return tuple(where[axis] for axis in order)

    def call(self, mark: Mark, operands: list[Any]) -> tuple[Any, ...]:
        if not mark.writes:
            return mark.read(operands, mark.order)
        places = tuple(a + b for a, b in zip(operands[mark.arrays + 1 :], self.starts, strict=True))
        return mark.write(operands, places, mark.order, mark.whole)


def loop(
    pass_: Pass, aliased: Sequence[int | None], arrays: Sequence[Any], scalars: Sequence[Any], began: Any
) -> tuple[list[Any], Any]:
    """The results of a pass.

    Args:
      pass_: the equations.
      aliased: for each result, the number of the input whose place it takes.
      arrays: the inputs.
      scalars: what is computed before.
      began: a 0, known when the loop may begin: one loop after another needs the memory of one.

    Returns:
      The results, and a 0 that is known when they are there.
    """
    numbers = dict(zip(pass_.scalars, scalars, strict=True))
    kinds = dict(zip(pass_.inputs, arrays, strict=True))
    wanted = list(pass_.results.values())
    crossing = _crossing(pass_, wanted)
    needed = _inputs_of(pass_, crossing)
    places = {pass_.inputs[n]: k for k, n in enumerate(aliased) if n is not None}

    def begun(x: Any) -> Any:
        """An array as the loop holds it; a copy of it is not made before the loop may begin."""
        words = to_words(x)
        return words if words.dtype == x.dtype else jnp.where(began == 0, words, 0)

    read_only = {v: begun(kinds[v]) for v in needed if v not in places}

    def computed(held: list[Any], part: _Part) -> list[Any]:
        """What the end of a part's way begins with."""
        values = dict(numbers)
        for v in needed:
            array = held[places[v]] if v in places else read_only[v]
            order = pass_.kinds[v]
            piece = jax.lax.dynamic_slice(array, part.starts_of(order), part.shape_of(order))
            values[v] = from_words(piece, kinds[v])
        made = pass_.computed(values, crossing, functools.partial(pass_.on_part, part))
        return [to_words(x) for x in made]

    def written(held: list[Any], part: _Part, made: list[Any]) -> list[Any]:
        pieces = [from_words(x, pass_.types[v]) for v, x in zip(crossing, made, strict=True)]
        values = numbers | dict(zip(crossing, pieces, strict=True))
        outs = pass_.computed(values, wanted, functools.partial(pass_.on_part, part))
        return [
            jax.lax.dynamic_update_slice(x, to_words(new), part.starts_of(pass_.kinds[v]))
            for x, new, v in zip(held, outs, wanted, strict=True)
        ]

    held = [
        begun(jnp.zeros(pass_.types[v].shape, pass_.types[v].dtype) if n is None else arrays[n])
        for n, v in zip(aliased, wanted, strict=True)
    ]
    for region in regions(pass_.shape, _MOST):
        held, began = _through(region, held, began, computed, written)
    return [from_words(x, pass_.types[v]) for x, v in zip(held, wanted, strict=True)], began


def _through(
    region: Region, held: list[Any], began: Any, computed: Callable[..., Any], written: Callable[..., Any]
) -> tuple[list[Any], Any]:
    """All parts of a region; `began` is a 0, and so is the second result."""

    def part(n: Any) -> _Part:
        return _Part(region.starts(n), region.shape)

    def one(carry: Any) -> Any:
        held, made, n = carry
        held = written(held, part(n), made)
        return held, computed(held, part(jnp.minimum(n + 1, region.rounds - 1))), n + 1

    made = computed(held, part(began))
    held, _, n = jax.lax.while_loop(lambda carry: carry[2] < region.rounds, one, (held, made, began))
    return held, n // (region.rounds + 1)


def zero_of(arrays: Sequence[Any], scalars: Sequence[Any]) -> Any:
    """A 0 that compilers do not see, made of a number that a step has: loops of one round stay loops."""
    x = scalars[0] if scalars else arrays[0][(0,) * arrays[0].ndim]
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    return hidden_zero((x.astype(jnp.uint32) >> 1).astype(jnp.int32))


def _crossing(pass_: Pass, wanted: Sequence[Any]) -> list[Any]:
    """What the end of a part's way begins with: operands of codecs with blocks, and results made before."""
    late: set[Any] = set()
    for eqn in pass_.equations:
        mark = mark_of(eqn.of)
        if (mark is not None and mark.writes_blocks) or late.intersection(variables(eqn.inputs)):
            late.update(eqn.outputs)
    numbers, found, pending = set(pass_.scalars), set(), variables(wanted)
    made_by = {v: eqn for eqn in pass_.equations for v in eqn.outputs}
    while pending:
        v = pending.pop()
        if v in late:
            pending += variables(made_by[v].inputs)
        elif v not in numbers:
            found.add(v)
    return sorted(found)


def _inputs_of(pass_: Pass, wanted: Sequence[Any]) -> list[Any]:
    """The inputs on which variables depend."""
    read = {v for eqn in pass_.needed(wanted, ()) for v in variables(eqn.inputs)}
    return [v for v in pass_.inputs if v in read or v in wanted]
