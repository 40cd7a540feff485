"""New parameters back in the layout of the old, made from each device's share of them."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array

from .._partition import all_names, devices_along, entries, is_even

# bytes on one device: what is smaller is gathered at once, and compilers may join several
BY_LAYERS = 2**26
LEAST = 2**20  # bytes of a layer on one device: less is not worth a collective of its own


def gathered(
    new: Sequence[Array],
    old: Sequence[Array],
    shares: Sequence[PartitionSpec],
    wholes: Sequence[PartitionSpec],
    mesh: Any,
) -> list[Array]:
    """Arrays that are divided by `shares`, divided by `wholes`.

    Large ones that are stacked are gathered one layer after another, each written in its place in the old
    array, so that beside the arrays themselves there is a layer at a time.

    Args:
      new: what comes.
      old: what it comes in the place of, divided by `wholes`.
      shares: a spec for each array.
      wholes: likewise, with fewer axes.
      mesh: with devices.
    """
    made: list[Any] = list(new)
    mapped = (
        AxisType.Manual in jax.sharding.get_abstract_mesh().axis_types
    )  # in part: a map inside has other axes
    at_once = []
    for n, (x, share, whole) in enumerate(zip(new, shares, wholes, strict=True)):
        dim, axes = _added(share, whole, x.ndim)
        size = x.size * x.dtype.itemsize // devices_along(all_names(whole), mesh)
        stacked = (
            dim > 0
            and is_even(share, x.shape, mesh)
            and not entries(whole, x.ndim)[0]
            and x.shape[0] > 1
            and not mapped
        )
        if stacked and size >= BY_LAYERS and size // x.shape[0] >= LEAST:
            made[n] = _by_layers(x, old[n], share, whole, mesh, dim, axes)
        else:
            at_once.append(n)
    shardings = [NamedSharding(mesh, wholes[n]) for n in at_once]
    placed = jax.lax.with_sharding_constraint([new[n] for n in at_once], shardings)
    for n, x in zip(at_once, placed, strict=True):
        made[n] = x
    return made


def _added(share: PartitionSpec, whole: PartitionSpec, rank: int) -> tuple[int, tuple[str, ...]]:
    """The dimension that a share divides further, and by which axes; -1 where that is not one dimension."""
    pairs = list(zip(entries(share, rank), entries(whole, rank), strict=True))
    differ = [dim for dim, (one, other) in enumerate(pairs) if one != other]
    if len(differ) != 1:
        return -1, ()
    one, other = pairs[differ[0]]
    return (differ[0], one[len(other) :]) if one[: len(other)] == other else (-1, ())


def _by_layers(
    x: Array, old: Array, share: PartitionSpec, whole: PartitionSpec, mesh: Any, dim: int, axes: Any
) -> Array:
    """An array gathered along `dim`, layer by layer, in the buffer of the old one."""

    def own(x: Array, old: Array) -> Array:
        def layer(n: Any, held: Array) -> Array:
            mine = jax.lax.dynamic_index_in_dim(x, n, 0, keepdims=False)
            row = jax.lax.all_gather(mine, axes, axis=dim - 1, tiled=True)
            return jax.lax.dynamic_update_index_in_dim(held, row, n, 0)

        return jax.lax.fori_loop(0, x.shape[0], layer, old)

    run = jax.shard_map(own, mesh=mesh, in_specs=(share, whole), out_specs=whole, check_vma=False)
    return run(x, old)
