"""A pass on CPU: a loop over windows that stay in cache, which writes in place.

XLA:CPU fuses no reduction with what it is used for: what a block's maximum is taken of, it computes anew
for every use, or writes to memory. Each round here ends by computing what the next one encodes: as a value
carried by the loop it is computed once; and as it is read after the last window is written, buffers stay.

Leaves with the same equations can run in one loop: compile time goes with the code, which is there once for
all of them.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from ..tracing.graph import variables
from .codecs import codec_of
from .integer_views import from_integers, pack, to_integers, unpack
from .passes import Order, Pass
from .windows import Region, WindowView, regions

_MOST = 2**17  # elements of a window: with all that is made of them they stay in a CPU's cache
_FEWEST = 2**15  # below it, rounds cost more than they save; below 2^17 XLA leaves a window to one core
_WINDOWS = 32  # of a leaf, where memory is short: what is made of one is then a fraction of the leaf


class Hold(NamedTuple):
    """What the array of a result holds until it is written, so that it needs no memory besides.

    Attributes:
      inputs: numbers of inputs of the pass: one that has the result's type; or two of 16 bits, for a result
        of 32; or none.
      copied: is the input needed after the loop? Then the copy is made when the loop starts: XLA would make
        those of all leaves at once.
    """

    inputs: tuple[int, ...] = ()
    copied: bool = False


def window_elements(shape: tuple[int, ...], holds: Sequence[Hold]) -> int:
    """Elements at most of a window; fewer where the loop has the memory of a leaf for itself already."""
    if not any(hold.copied for hold in holds):
        return _MOST
    return min(_MOST, max(_FEWEST, math.prod(shape) // _WINDOWS))


def loop(
    pass_: Pass,
    holds: Sequence[Hold],
    arrays: Sequence[Sequence[Any]],
    scalars: Sequence[Any],
    token: Any,
) -> tuple[list[list[Any]], Any]:
    """The results of a pass on each of some leaves.

    Args:
      pass_: the equations.
      holds: for each result, what its array holds until it is written.
      arrays: for each leaf, the inputs.
      scalars: what is computed before: each a number for all leaves, or a vector of one for each.
      token: ordering token, a 0: the loop starts after it, so that loops need the memory of one.

    Returns:
      For each leaf, the results; and the ordering token of what comes after.
    """
    work = _Work(pass_, list(pass_.results.values()), list(scalars))
    types = [pass_.types[v] for v in work.wanted]
    at = {pass_.inputs[n]: (k, half) for k, hold in enumerate(holds) for half, n in enumerate(hold.inputs)}
    halved = {k: tuple(pass_.types[pass_.inputs[n]].dtype for n in h.inputs) for k, h in enumerate(holds)}

    def read_only(x: Any) -> Any:
        """An input as the loop reads it; a copy of it is not made before the loop may begin."""
        held = to_integers(x)
        return held if held.dtype == x.dtype else jnp.where(token == 0, held, 0)

    def held_of(xs: Sequence[Any]) -> list[Any]:
        return [
            _begun(hold, [xs[n] for n in hold.inputs], t, token) for hold, t in zip(holds, types, strict=True)
        ]

    given = [dict(zip(pass_.inputs, xs, strict=True)) for xs in arrays]
    elsewhere = [{v: read_only(xs[v]) for v in work.needed if v not in at} for xs in given]

    def sources(k: int, held: list[Any]) -> list[Any]:
        """Where a leaf's inputs are."""
        return [held[at[v][0]] if v in at else elsewhere[k][v] for v in work.needed]

    def piece(v: Any, x: Any) -> Any:
        """An input's window, of the window of the array that holds it."""
        k, half = at.get(v, (None, 0))
        if k is None or len(halved[k]) < 2:
            return x
        return to_integers(unpack(x, *halved[k])[half])

    held = [held_of(xs) for xs in arrays]
    for region in regions(pass_.shape, window_elements(pass_.shape, holds)):
        held, token = _through(work, region, held, sources, piece, token)
    return [[from_integers(x, t) for x, t in zip(xs, types, strict=True)] for xs in held], token


def _begun(hold: Hold, inputs: list[Any], kind: Any, token: Any) -> Any:
    """The array of a result as the loop begins with it."""
    if not inputs:
        return to_integers(jnp.full(kind.shape, token, kind.dtype))
    if len(inputs) == 2:
        return jnp.where(token == 0, pack(*inputs), 0)
    (x,) = inputs
    held = to_integers(x)
    return held if held.dtype == x.dtype and not hold.copied else jnp.where(token == 0, held, 0)


@dataclasses.dataclass(frozen=True)
class _Work:
    """What is done to a window of a leaf: `computed`, and, when that is in memory, `encoded`."""

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

    def computed(self, pieces: list[Any], numbers: list[Any], view: WindowView) -> list[Any]:
        """What the end of a window's way begins with."""
        return self._made(self.needed, pieces, self.crossing, numbers, view)

    def encoded(self, made: list[Any], numbers: list[Any], view: WindowView) -> list[Any]:
        """What is written."""
        return self._made(self.crossing, made, self.wanted, numbers, view)

    def _made(
        self, given: list[Any], pieces: list[Any], wanted: list[Any], numbers: list[Any], view: WindowView
    ) -> list[Any]:
        values = dict(zip(self.pass_.scalars, numbers, strict=True))
        values |= {v: from_integers(x, self.pass_.types[v]) for v, x in zip(given, pieces, strict=True)}
        made = self.pass_.computed(values, wanted, functools.partial(self.pass_.on_view, view))
        return [to_integers(x) for x in made]

    def orders(self, variables: list[Any]) -> list[Order | None]:
        return [self.pass_.kinds[v] for v in variables]


def _through(
    work: _Work,
    region: Region,
    held: list[list[Any]],
    sources: Callable[..., list[Any]],
    piece: Callable[[Any, Any], Any],
    token: Any,
) -> tuple[list[list[Any]], Any]:
    """All windows of a region, of one leaf after another.

    What is encoded is there once, whichever leaf it is for: compilers need time for every copy.
    """
    count, rounds = len(held), jnp.int32(region.rounds)
    last = count * rounds - 1

    def place(n: Any) -> tuple[Any, WindowView]:
        """The leaf that a round is for, and the window of it."""
        leaf, n = (jnp.zeros_like(n), n) if count == 1 else (jax.lax.div(n, rounds), jax.lax.rem(n, rounds))
        return leaf, WindowView(region.starts(n), region.shape)

    @jax.jit  # traced once for all leaves
    def computed(arrays: list[Any], starts: tuple[Any, ...], numbers: list[Any]) -> list[Any]:
        view, orders = WindowView(starts, region.shape), work.orders(work.needed)
        pieces = [view.taken(x, order) for x, order in zip(arrays, orders, strict=True)]
        pieces = [piece(v, x) for v, x in zip(work.needed, pieces, strict=True)]
        return work.computed(pieces, numbers, view)

    @jax.jit
    def put(arrays: list[Any], starts: tuple[Any, ...], new: list[Any]) -> list[Any]:
        view, orders = WindowView(starts, region.shape), work.orders(work.wanted)
        return [view.put(x, y, order) for x, y, order in zip(arrays, new, orders, strict=True)]

    @jax.jit
    def put_if(arrays: list[Any], ahead: Any, starts: tuple[Any, ...], new: list[Any]) -> Any:
        """A leaf's arrays, and how many more leaves the one to write is ahead.

        That number comes out of a branch, so that for all leaves the same is done, and not compared with
        one constant after another.
        """
        now = lambda: (put(arrays, starts, new), ahead - 1)  # noqa: E731
        return jax.lax.cond(ahead == 0, now, lambda: (arrays, ahead - 1))

    def computed_at(held: list[list[Any]], n: Any) -> list[Any]:
        leaf, view = place(n)
        branch = functools.partial(computed, starts=view.starts, numbers=work.numbers(leaf))
        return jax.lax.switch(leaf, [functools.partial(branch, sources(k, xs)) for k, xs in enumerate(held)])

    def written(held: list[list[Any]], n: Any, made: list[Any]) -> list[list[Any]]:
        leaf, view = place(jnp.maximum(n, 0))
        new = work.encoded(made, work.numbers(leaf), view)
        if count == 1:
            return [put(held[0], view.starts, new)]
        after: list[list[Any]] = []
        ahead = jnp.where(n < 0, -1, leaf)
        for xs in held:
            own, ahead = put_if(xs, ahead, view.starts, new)
            after.append(own)
        return after

    def one(carry: Any) -> Any:
        held, made, n = carry
        held = written(held, n, made)
        return held, computed_at(held, jnp.minimum(n + 1, last)), n + 1

    if count == 1:
        leaf, view = place(token)
        made, first = computed(sources(0, held[0]), view.starts, work.numbers(leaf)), token
    else:  # a round that writes to none of them, in the place of one more copy of `computed`
        nothing, types = WindowView((), region.shape), work.pass_.types
        empty = [jnp.zeros(nothing.shape_of(work.pass_.kinds[v]), types[v].dtype) for v in work.crossing]
        made, first = [to_integers(x) for x in empty], token - 1
    held, _, n = jax.lax.while_loop(lambda carry: carry[2] <= last, one, (held, made, first))
    return held, n // (last + 2)  # 0, and known when the loop is over


def first_token(arrays: Sequence[Any], scalars: Sequence[Any]) -> Any:
    """A token made of a number that a step has: a 0 that compilers do not see, so that loops stay loops."""
    plain = [
        x for x in scalars if jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)
    ]
    x = plain[0] if plain else arrays[0][(0,) * arrays[0].ndim].real
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    return opaque_zero((x.astype(jnp.uint32) >> 1).astype(jnp.int32))


@custom_vmap
def opaque_zero(number: Any) -> Any:
    """A 0 that compilers do not see, of a number that is not negative."""
    return jnp.minimum(number, 0)


@opaque_zero.def_vmap
def _(size: int, is_batched: Any, numbers: Any) -> Any:
    """One for the whole batch: with one each, loops would select every array they carry."""
    del size, is_batched
    return opaque_zero(jnp.min(numbers)), False


def _crossing(pass_: Pass, wanted: Sequence[Any]) -> list[Any]:
    """What the end of a window's way begins with: operands of codecs with blocks, and results made before."""
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
