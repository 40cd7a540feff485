"""A pass on CPU: a loop over parts that stay in cache, which writes in place.

XLA:CPU fuses no reduction with what it is used for: what a block's maximum is taken of, it computes anew
for every use, or writes to memory. Each round here ends by computing what the next one encodes: as a value
carried by the loop it is computed once; and as it is read after the last part is written, buffers stay.

Leaves with the same equations run in one loop: compile time goes with the code, which is there once for all
of them.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from .._encoded import BLOCK, scale_shape
from ..tracing.graph import variables
from .codecs import CodecCall, codec_of
from .integer_views import from_words, to_words
from .passes import Order, Pass
from .regions import Region, regions

_MOST = 2**17  # elements of a part: with all that is made of them they stay in a CPU's cache


@dataclasses.dataclass(frozen=True)
class _Part:
    """A box of an array."""

    starts: tuple[Any, ...]
    shape: tuple[int, ...]

    def shape_of(self, order: Order | None) -> tuple[int, ...]:
        return self.shape if order is None else scale_shape(self.shape, order)

    def starts_of(self, order: Order | None) -> list[Any]:
        """As unsigned numbers: others could be negative, and be counted from the end."""
        where = self.starts
        if order is not None:
            blocks = jax.lax.div(where[-1], np.int32(BLOCK))
            where = [(*where[:-1], blocks)[axis] for axis in order]
        return [jnp.asarray(n, jnp.uint32) for n in where]

    def taken(self, x: Any, order: Order | None) -> Any:
        return jax.lax.dynamic_slice(x, self.starts_of(order), self.shape_of(order))

    def put(self, x: Any, new: Any, order: Order | None) -> Any:
        return jax.lax.dynamic_update_slice(x, new, self.starts_of(order))

    def call(self, codec: CodecCall, operands: list[Any]) -> tuple[Any, ...]:
        if not codec.writes:
            return codec.read(operands, codec.order)
        places = tuple(a + b for a, b in zip(operands[codec.arrays + 1 :], self.starts, strict=True))
        return codec.write(operands, places, codec.order, codec.whole)


def loop(
    pass_: Pass,
    aliased: Sequence[int | None],
    arrays: Sequence[Sequence[Any]],
    scalars: Sequence[Any],
    token: Any,
) -> tuple[list[list[Any]], Any]:
    """The results of a pass on each of some leaves.

    Args:
      pass_: the equations.
      aliased: for each result, the number of the input whose place it takes.
      arrays: for each leaf, the inputs.
      scalars: what is computed before: each a number for all leaves, or a vector of one for each.
      token: ordering token, a 0: the loop starts after it, so that loops need the memory of one.

    Returns:
      For each leaf, the results; and the ordering token of what comes after.
    """
    work = _Work(pass_, list(pass_.results.values()), list(scalars))
    places = {pass_.inputs[n]: k for k, n in enumerate(aliased) if n is not None}
    types = [pass_.types[v] for v in work.wanted]

    def begun(x: Any) -> Any:
        """An array as the loop holds it; a copy of it is not made before the loop may begin."""
        words = to_words(x)
        return words if words.dtype == x.dtype else jnp.where(token == 0, words, 0)

    def held_of(xs: Sequence[Any]) -> list[Any]:
        return [
            begun(jnp.zeros(t.shape, t.dtype) if n is None else xs[n])
            for n, t in zip(aliased, types, strict=True)
        ]

    given = [dict(zip(pass_.inputs, xs, strict=True)) for xs in arrays]
    only_read = [{v: begun(xs[v]) for v in work.needed if v not in places} for xs in given]

    def sources(k: int, held: list[Any]) -> list[Any]:
        """Where a leaf's inputs are."""
        return [held[places[v]] if v in places else only_read[k][v] for v in work.needed]

    held = [held_of(xs) for xs in arrays]
    for region in regions(pass_.shape, _MOST):
        held, token = _through(work, region, held, sources, token)
    return [[from_words(x, t) for x, t in zip(xs, types, strict=True)] for xs in held], token


@dataclasses.dataclass(frozen=True)
class _Work:
    """What is done to a part of a leaf: `computed`, and, when that is in memory, `encoded`."""

    pass_: Pass
    wanted: list[Any]
    scalars: list[Any]

    @functools.cached_property
    def crossing(self) -> list[Any]:
        return _crossing(self.pass_, self.wanted)

    @functools.cached_property
    def needed(self) -> list[Any]:
        return _inputs_of(self.pass_, self.crossing)

    def numbers(self, leaf: Any) -> list[Any]:
        """The scalars of one leaf."""
        index = functools.partial(jax.lax.dynamic_index_in_dim, index=leaf, keepdims=False)
        return [index(x) if x.ndim else x for x in self.scalars]

    def computed(self, pieces: list[Any], numbers: list[Any], part: _Part) -> list[Any]:
        """What the end of a part's way begins with."""
        return self._made(self.needed, pieces, self.crossing, numbers, part)

    def encoded(self, made: list[Any], numbers: list[Any], part: _Part) -> list[Any]:
        """What is written."""
        return self._made(self.crossing, made, self.wanted, numbers, part)

    def _made(
        self, given: list[Any], pieces: list[Any], wanted: list[Any], numbers: list[Any], part: _Part
    ) -> list[Any]:
        values = dict(zip(self.pass_.scalars, numbers, strict=True))
        values |= {v: from_words(x, self.pass_.types[v]) for v, x in zip(given, pieces, strict=True)}
        made = self.pass_.computed(values, wanted, functools.partial(self.pass_.on_part, part))
        return [to_words(x) for x in made]

    def orders(self, variables: list[Any]) -> list[Order | None]:
        return [self.pass_.kinds[v] for v in variables]


def _through(
    work: _Work, region: Region, held: list[list[Any]], sources: Callable[..., list[Any]], token: Any
) -> tuple[list[list[Any]], Any]:
    """All parts of a region, of one leaf after another; `token` is a 0, and so is the second result.

    What is encoded is there once, whichever leaf it is for: compilers need time for every copy.
    """
    count, rounds = len(held), jnp.int32(region.rounds)
    last = count * rounds - 1

    def place(n: Any) -> tuple[Any, _Part]:
        """The leaf that a round is for, and the part of it."""
        leaf, n = (jnp.zeros_like(n), n) if count == 1 else (jax.lax.div(n, rounds), jax.lax.rem(n, rounds))
        return leaf, _Part(region.starts(n), region.shape)

    @jax.jit  # traced once for all leaves
    def computed(arrays: list[Any], starts: tuple[Any, ...], numbers: list[Any]) -> list[Any]:
        part, orders = _Part(starts, region.shape), work.orders(work.needed)
        pieces = [part.taken(x, order) for x, order in zip(arrays, orders, strict=True)]
        return work.computed(pieces, numbers, part)

    @jax.jit
    def put(arrays: list[Any], starts: tuple[Any, ...], new: list[Any]) -> list[Any]:
        part, orders = _Part(starts, region.shape), work.orders(work.wanted)
        return [part.put(x, y, order) for x, y, order in zip(arrays, new, orders, strict=True)]

    @jax.jit
    def put_if(arrays: list[Any], ahead: Any, starts: tuple[Any, ...], new: list[Any]) -> Any:
        """A leaf's arrays, and how many more leaves the one to write is ahead.

        That number comes out of a branch, so that for all leaves the same is done, and not compared with
        one constant after another.
        """
        now = lambda: (put(arrays, starts, new), ahead - 1)  # noqa: E731
        return jax.lax.cond(ahead == 0, now, lambda: (arrays, ahead - 1))

    def computed_at(held: list[list[Any]], n: Any) -> list[Any]:
        leaf, part = place(n)
        branch = functools.partial(computed, starts=part.starts, numbers=work.numbers(leaf))
        return jax.lax.switch(leaf, [functools.partial(branch, sources(k, xs)) for k, xs in enumerate(held)])

    def written(held: list[list[Any]], n: Any, made: list[Any]) -> list[list[Any]]:
        leaf, part = place(jnp.maximum(n, 0))
        new = work.encoded(made, work.numbers(leaf), part)
        if count == 1:
            return [put(held[0], part.starts, new)]
        after: list[list[Any]] = []
        ahead = jnp.where(n < 0, -1, leaf)
        for xs in held:
            own, ahead = put_if(xs, ahead, part.starts, new)
            after.append(own)
        return after

    def one(carry: Any) -> Any:
        held, made, n = carry
        held = written(held, n, made)
        return held, computed_at(held, jnp.minimum(n + 1, last)), n + 1

    if count == 1:
        leaf, part = place(token)
        made, first = computed(sources(0, held[0]), part.starts, work.numbers(leaf)), token
    else:  # a round that writes to none of them, in the place of one more copy of `computed`
        size, types = _Part((), region.shape), work.pass_.types
        empty = [jnp.zeros(size.shape_of(work.pass_.kinds[v]), types[v].dtype) for v in work.crossing]
        made, first = [to_words(x) for x in empty], token - 1
    held, _, n = jax.lax.while_loop(lambda carry: carry[2] <= last, one, (held, made, first))
    return held, n // (last + 2)


def zero_of(arrays: Sequence[Any], scalars: Sequence[Any]) -> Any:
    """A 0 that compilers do not see, made of a number that a step has: loops of one round stay loops."""
    x = scalars[0] if scalars else arrays[0][(0,) * arrays[0].ndim]
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    return opaque_zero((x.astype(jnp.uint32) >> 1).astype(jnp.int32))


@custom_vmap
def opaque_zero(step: Any) -> Any:
    """A 0 that compilers do not see: loops of one round stay, and loops after it wait."""
    return jnp.minimum(step, 0)


@opaque_zero.def_vmap
def _(size: int, is_batched: Any, steps: Any) -> Any:
    """One for the whole batch: with one each, loops would select every array they carry."""
    del size, is_batched
    return opaque_zero(jnp.min(steps)), False


def _crossing(pass_: Pass, wanted: Sequence[Any]) -> list[Any]:
    """What the end of a part's way begins with: operands of codecs with blocks, and results made before."""
    late: set[Any] = set()
    for eqn in pass_.equations:
        codec = codec_of(eqn.of)
        if (codec is not None and codec.writes_blocks) or late.intersection(variables(eqn.inputs)):
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
