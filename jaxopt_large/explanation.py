"""What `zero`, `offload` and `stored` decided for each parameter, and why, as a table."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec

from ._paths import leaf_paths
from ._tables import table
from ._types import AnyRule, Params
from .placement._hosted import OffloadState, is_offloaded
from .placement._layout import ZeroState, is_zero
from .placement.shardings import evaluated
from .storage.stored import StoredState, is_stored


class Decision(NamedTuple):
    """What a wrapper does with the state of one parameter.

    Attributes:
      wrapper: "zero", "offload" or "stored".
      path: the parameter's.
      shape: the parameter's; for "stored", of the leaf of the state.
      where: the mesh axes of each dimension, "whole", "flat", "host" or "device"; for "stored", the
        field and its format.
      bytes: of its state, on one device; for "stored", of the leaf.
      reason: why.
    """

    wrapper: str
    path: str
    shape: tuple[int, ...]
    where: str
    bytes: int
    reason: str


class Explanation(tuple[Decision, ...]):
    """One decision per parameter and wrapper; printed, a table."""

    def __str__(self) -> str:
        rows = [tuple(f"{x:,}" if isinstance(x, int) else str(x) for x in row) for row in self]
        return table(Decision._fields, rows)


def explain(rule: AnyRule, params: Params, *, axis_sizes: Mapping[str, int] | None = None) -> Explanation:
    """How placement and storage treat the state of each parameter, and why; nothing is allocated.

    Args:
      rule: a rule with `zero`, `offload` or `stored` in it, over all the parameters or over parts of them.
      params: arrays, or `jax.ShapeDtypeStruct`s with a `sharding`.
      axis_sizes: for `zero(..., axis_name=...)`: mapped axis -> number of devices.

    Returns:
      The decisions; empty for a rule without such wrappers.

    >>> mesh = jax.sharding.AbstractMesh((8,), ("data",))
    >>> rule = jl.zero(jl.adam(1e-3), mesh, "data")
    >>> print(jl.explain(rule, {"b": jnp.ones(8), "w": jnp.ones((128, 512))}))
    wrapper  path  shape       where  bytes   reason
    -------  ----  ----------  -----  ------  ---------------------------------------------
    zero     b     (8,)        whole  64      32 bytes, under 65536: not worth a collective
    zero     w     (128, 512)  data   65,536  dimension 0
    >>> params = {"b": jnp.ones(8), "w": jnp.ones((128, 512))}
    >>> print(jl.explain(jl.stored(jl.adam(1e-3), nu=jl.int8()), params))
    wrapper  path  shape       where        bytes   reason
    -------  ----  ----------  -----------  ------  ----------------------
    stored   b     (8,)        nu: float32  32      8 elements, under 4096
    stored   w     (128, 512)  nu: int8     67,584  given; never negative
    """
    mapped = axis_sizes or {}
    state, _ = evaluated(rule, params, mapped)
    paths, leaves = leaf_paths(params), jax.tree.leaves(params)
    rows: list[Decision] = []
    for node in jax.tree.leaves(state, is_leaf=lambda x: is_zero(x) or is_offloaded(x)):
        if is_offloaded(node):
            rows += _offloaded(node, paths, leaves)
            node = node.inner
        for zero in filter(is_zero, jax.tree.leaves(node, is_leaf=is_zero)):
            rows += _divided(zero, paths, leaves, math.prod(mapped.values()))
    for node in filter(is_stored, jax.tree.leaves(state, is_leaf=is_stored)):
        rows += _stored(node)
    return Explanation(rows)


def _stored(node: StoredState) -> list[Decision]:
    return [
        Decision("stored", c.path, c.shape, f"{c.field}: {c.format.name}", c.format.bytes(c.shape), c.reason)
        for c in node.plan.choices
        if c.format is not None
    ]


def _divided(node: ZeroState, paths: list[str], leaves: list[Any], copies: int) -> list[Decision]:
    layout = node.layout
    if len(layout.params) != len(paths):  # of a part of the parameters: it knows shapes, not paths
        paths, leaves = [f"#{i}" for i in range(len(layout.params))], [None] * len(layout.params)
    inner = jax.tree.leaves(node.inner)
    rows = []
    for i, (path, leaf, cut) in enumerate(zip(paths, leaves, layout.params, strict=True)):
        held = 0
        for j, owner in enumerate(layout.owners):
            if owner == i:
                size = inner[j].size * inner[j].dtype.itemsize
                if layout.mesh is None:
                    held += size // max(copies, 1)  # one device's share, with the axis of `evaluated`
                else:
                    held += size // _parts(layout.state_specs[j], layout.mesh)
        where = "flat" if cut is not None and cut.dim is None else _where(layout, i)
        shape = () if leaf is None else tuple(leaf.shape)
        rows.append(Decision("zero", path, shape, where, held, layout.reasons[i]))
    return rows


def _where(layout: Any, i: int) -> str:
    if layout.mesh is None:
        cut = layout.params[i]
        return "whole" if cut is None else ", ".join(["-"] * cut.dim + list(layout.axes))
    parts = [x if isinstance(x, tuple) else (x,) for x in layout.share_specs[i]]
    return ", ".join("-" if p == (None,) else "+".join(p) for p in parts) or "whole"


def _parts(spec: PartitionSpec, mesh: Any) -> int:
    names = [n for part in spec if part for n in (part if isinstance(part, tuple) else (part,))]
    return math.prod(mesh.shape[n] for n in names)


def _offloaded(node: OffloadState, paths: list[str], leaves: list[Any]) -> list[Decision]:
    hosted, inner = node.hosted, jax.tree.leaves(node.inner)
    rows = []
    for i, (path, leaf) in enumerate(zip(paths, leaves, strict=True)):
        mine = [j for j, owner in enumerate(hosted.owners) if owner == i]
        moved = [j for j in mine if hosted.on_host[j]]
        where = "host" if moved else "device"
        why = f"{len(moved)} of {len(mine)} leaves in host memory, streamed {hosted.ways[i]}"
        held = sum(inner[j].size * inner[j].dtype.itemsize for j in mine if j not in moved)
        rows.append(
            Decision(
                "offload", path, tuple(leaf.shape), where, held, why if moved else "not chosen, or small"
            )
        )
    return rows
