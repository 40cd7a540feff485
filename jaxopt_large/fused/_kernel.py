"""A pass as one Pallas kernel: tiles come in, all of the step happens to them, and they go out in place."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from .._encoded import BLOCK
from ..passes.codecs import CodecCall
from ..passes.loop import Hold
from ..passes.passes import Order, Pass
from ._lowerable import not_lowerable, run_lowerable
from .targets import NoTileError, Target, Tile, runs_at_once


@dataclasses.dataclass(frozen=True)
class _TileView:
    """Where a tile is; its leading axes are gone.

    Attributes:
      tile: its shape.
      starts: of the tile in the array at hand, along each axis.
      bases: of that array in the one that random bits are drawn for.
      length: of the array's last axis.
      padded: does the tile reach beyond it?
    """

    tile: Tile
    starts: tuple[Any, ...]
    bases: tuple[Any, ...]
    length: int
    padded: bool

    def shape_of(self, order: Order | None) -> tuple[int, ...]:
        rows, blocks = self.tile.rows, self.tile.columns // BLOCK
        if order is None:
            return (rows, self.tile.columns)
        return (rows, blocks) if _flat(order) == (0, 1) else (blocks, rows)

    def handed(self, equation: Any, operands: list[Any]) -> Sequence[Any]:
        del equation
        return operands

    def call(self, codec: CodecCall, operands: list[Any]) -> tuple[Any, ...]:
        if not codec.writes:
            return codec.read(operands, _flat(codec.order))
        # a tile may reach beyond its array: what lies there is no number, and would spoil its block's maximum
        if self.padded and codec.order:
            column = jax.lax.broadcasted_iota(jnp.int32, (1, self.tile.columns), 1) + self.starts[-1]
            x = operands[0]
            operands = [jnp.where(column < self.length, x, jnp.zeros((), x.dtype)), *operands[1:]]
        # random bits depend on the place in the whole array: where the codec's array begins in it, plus where
        # this device's part begins, plus where the tile does; all axes but the last are one number, the row
        starts = operands[codec.arrays + 1 :]
        *places, column = (sum(n) for n in zip(starts, self.starts, self.bases, strict=True))
        row = sum(p * math.prod(codec.whole[n + 1 : -1]) for n, p in enumerate(places))
        # of two axes the lengths do not matter: codecs are shared by all arrays
        return codec.write(operands, (row, column), _flat(codec.order), (1, 1))


def _flat(order: Order) -> Order:
    """An order of axes when only the last two are left."""
    if not order:
        return ()
    last = len(order) - 1
    return (1, 0) if order.index(last) < order.index(last - 1) else (0, 1)


def why_not(pass_: Pass, target: Target) -> str | None:
    """Why no kernel can run a pass; None: one can."""
    if reason := target.why_not(pass_):
        return reason
    try:
        tile = target.tile(pass_)
    except NoTileError as error:
        return str(error)
    unknown = not_lowerable(_traced(pass_, target.blocks(pass_, tile).run))
    return f"its equations have {', '.join(unknown)}" if unknown else None


@functools.lru_cache(maxsize=64)  # asked once why not, and once more to run
def _traced(pass_: Pass, tile: Tile) -> Any:
    """The pass on a tile: (its starts, bases, arrays, scalars) -> results."""
    length = pass_.shape[-1]

    def run(starts: list[Any], bases: list[Any], arrays: list[Any], scalars: list[Any]) -> list[Any]:
        place = _TileView(tile, tuple(starts), tuple(bases), length, length % tile.columns != 0)
        values = dict(zip((*pass_.inputs, *pass_.scalars), (*arrays, *scalars), strict=True))
        wanted = list(pass_.results.values())
        return pass_.computed(values, wanted, functools.partial(pass_.on_view, place))

    # traced on shapes first, and only then interpreted inside the kernel: what the compilers lack is replaced
    # equation by equation, and `why_not` can look at what is left without compiling anything
    shape_of = _TileView(tile, (), (), length, False).shape_of
    return jax.make_jaxpr(run)(
        [jax.ShapeDtypeStruct((), jnp.int32)] * len(pass_.shape),
        [jax.ShapeDtypeStruct((), jnp.int32)] * len(pass_.shape),
        [jax.ShapeDtypeStruct(shape_of(pass_.kinds[v]), pass_.types[v].dtype) for v in pass_.inputs],
        [jax.ShapeDtypeStruct((), pass_.types[v].dtype) for v in pass_.scalars],
    )


def kernel(
    pass_: Pass,
    holds: Sequence[Hold],
    arrays: Sequence[Any],
    scalars: Sequence[Any],
    target: Target,
    *,
    offsets: Sequence[Any] | None = None,
    interpret: bool = False,
) -> list[Any]:
    """The results of a pass.

    Args:
      pass_: the equations.
      holds: for each result, the input whose place it takes.
      arrays: the inputs.
      scalars: what is computed before.
      target: what it is compiled for.
      offsets: where these arrays begin in those that random bits are drawn for; by default at 0.
      interpret: run it on any platform, for tests.

    Raises:
      NoTileError: `why_not` would have said so.
    """
    tile = target.tile(pass_)
    edges = target.blocks(pass_, tile)
    closed = _traced(pass_, edges.run)
    wanted = list(pass_.results.values())
    rank = len(pass_.shape)
    floats = [n for n, x in enumerate(scalars) if jnp.issubdtype(x.dtype, jnp.floating)]
    integers = [n for n in range(len(scalars)) if n not in floats]

    def body(float_ref: Any, integer_ref: Any, *refs: Any) -> None:
        # the grid goes through the axes in the order that suits the scales; the equations want the array's
        sources, targets = refs[: len(arrays)], refs[len(arrays) :]
        index = [pl.program_id(edges.axes.index(axis)) for axis in range(rank)]
        bases = [integer_ref[n] for n in range(rank)]
        numbers: list[Any] = [None] * len(scalars)
        for place, n in enumerate(floats):
            numbers[n] = float_ref[place].astype(scalars[n].dtype)
        for place, n in enumerate(integers):
            word, dtype = integer_ref[rank + place], scalars[n].dtype
            numbers[n] = word != 0 if dtype == jnp.bool_ else word.astype(dtype)

        def one(*where: Any) -> None:
            """The step on a run of the tile, or on all of it."""
            row, column = (n * size for n, size in zip(where or (0, 0), edges.run, strict=True))
            starts = [*index[:-2], index[-2] * tile.rows + row, index[-1] * tile.columns + column]
            loaded = [edges.load(ref, v, index, *where) for ref, v in zip(sources, pass_.inputs, strict=True)]
            made = run_lowerable(closed, [*starts, *bases, *loaded, *numbers])
            for ref, v, x in zip(targets, wanted, made, strict=True):
                edges.store(ref, v, index, x, *where)

        _looped(one, tile, edges.run)

    offsets = [jnp.zeros((), jnp.int32)] * rank if offsets is None else offsets
    # scalars come as two vectors, whatever their dtypes: chips keep numbers in a memory of 32-bit words
    vectors = [
        jnp.stack([x.astype(jnp.float32) for x in (scalars[n] for n in floats)] or [jnp.zeros(())]),
        jnp.stack([x.astype(jnp.int32) for x in (*offsets, *(scalars[n] for n in integers))]),
    ]
    call = pl.pallas_call(
        body,
        grid=edges.grid,
        in_specs=[*(target.numbers_spec(x) for x in vectors), *(edges.spec(v) for v in pass_.inputs)],
        out_specs=[edges.spec(v) for v in wanted],
        out_shape=[jax.ShapeDtypeStruct(pass_.types[v].shape, pass_.types[v].dtype) for v in wanted],
        input_output_aliases={2 + n: k for k, hold in enumerate(holds) for n in hold.inputs},
        interpret=interpret or target.interpreted,
        name="jaxopt_large_step",
        **target.options(),
    )
    return list(call(*vectors, *arrays))


def _looped(one: Callable[..., None], tile: Tile, run: Tile) -> None:
    """Calls a function for each run of a tile, with its row and column among them."""
    if run == tile:
        return one()
    # several runs side by side in the loop's body: while one waits for its numbers, another computes
    down, across = (n // size for n, size in zip(tile, run, strict=True))
    together = math.gcd(down * across, runs_at_once(run))

    @pl.loop(0, down * across // together)
    def _(n: Any) -> None:
        for k in range(together):
            one(*(f(n * together + k, jnp.int32(across)) for f in (jax.lax.div, jax.lax.rem)))
