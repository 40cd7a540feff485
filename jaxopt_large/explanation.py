"""What a rule keeps for each parameter, and what `zero`, `offload` and `stored` decided, as a table."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._encoded import is_encoded
from ._owners import Owners
from ._partition import in_words
from ._paths import leaf_paths
from ._state_rows import NONE, StateRow, axes_of, bits_of, placed_leaves, state_rows
from ._tables import Table, fields_of, table
from ._types import AnyRule, Params
from .placement._layout import ZeroState, is_zero
from .placement._offload_state import OffloadState, is_offloaded
from .placement.shardings import abstract_init
from .storage._choices import NOT_GIVEN
from .storage.stored import StoredState, is_stored

_WRAPPERS = ("zero", "offload", "stored")
_MOST_PRINTED = 60  # rows of a table: more than fit on a screen or two


class Decision(NamedTuple):
    """What a wrapper does with the state of one parameter.

    Attributes:
      wrapper: "zero", "offload" or "stored"; of an array that none of them holds, the transform that
        keeps it, as `StateRow.rule` has it.
      path: the parameter's.
      shape: the parameter's; for "stored" and where there is no wrapper, of the leaf of the state.
      where: the mesh axes of each dimension, "whole", "flat", "host" or "device"; for "stored", the
        field and its format; where there is no wrapper, the field and its dtype.
      bytes: of its state, on one device; for "stored" and where there is no wrapper, of the leaf.
      reason: why.
    """

    wrapper: str
    path: str
    shape: tuple[int, ...]
    where: str
    bytes: int
    reason: str


class StateRows(Table):
    """One `StateRow` for each array of a state."""

    columns = ("path", "group", "rule", "field", "dtype", "shape", "bytes", "where")
    skips_empty = True
    most_printed = _MOST_PRINTED


class Explanation(Table):
    """Decisions: one per parameter and wrapper, and one per array that no wrapper holds.

    Printed, three tables: the arrays of the state, what wrappers decided, and totals. Of many rows the
    first are printed.

    Attributes:
      rows: a `StateRow` for each array of the state and each parameter without state, all of them.
      parameter_bytes: of all the parameters.
    """

    columns = Decision._fields
    most_printed = _MOST_PRINTED
    rows: StateRows
    parameter_bytes: int

    def __new__(  # noqa: D102
        cls, decisions: Iterable[Decision], rows: Iterable[StateRow] = (), parameter_bytes: int = 0
    ) -> "Explanation":
        made = super().__new__(cls, decisions)
        made.rows, made.parameter_bytes = StateRows(rows), parameter_bytes
        return made

    @property
    def state_bytes(self) -> int:
        """Of the whole state; inside mapped axes, of one device's."""
        return sum(row.bytes for row in self.rows)

    def __str__(self) -> str:
        wrapped = Explanation(row for row in self if row.wrapper in _WRAPPERS)
        tables = [str(self.rows) if self.rows else "", Table.__str__(wrapped) if wrapped else ""]
        return "\n\n".join(x for x in (*tables, self._totals()) if x)

    def to_json(self) -> str:
        """The rows, the decisions and the bytes of all parameters, as JSON."""
        parts = {"rows": self.rows, "decisions": self}
        found: dict[str, Any] = {name: [fields_of(row) for row in rows] for name, rows in parts.items()}
        return json.dumps(found | {"parameter_bytes": self.parameter_bytes}, indent=1)

    def _totals(self) -> str:
        sums: dict[str, list[int]] = {}
        placed = any(row.where for row in self.rows)
        for row in self.rows:
            names = [row.field.split("/")[0]] if row.bytes else []
            for name in [*names, *([f"group {row.group}"] if row.group else []), "state"]:
                total = sums.setdefault(name, [0, 0])
                total[0], total[1] = total[0] + row.bytes, total[1] + row.device_bytes
        order = sorted(sums, key=lambda name: (name == "state", name.startswith("group ")))
        lines = [(name, f"{sums[name][0]:,}", f"{sums[name][1]:,}") for name in order]
        lines.append(("parameters", f"{self.parameter_bytes:,}", ""))
        width = 3 if placed else 2
        return table(("total", "bytes", "on one device")[:width], [line[:width] for line in lines])


def explain(rule: AnyRule, params: Params, *, axis_sizes: Mapping[str, int] | None = None) -> Explanation:
    """What a rule keeps for each parameter, how and where, and why; nothing is allocated.

    Args:
      rule: any rule, ours or optax's, with or without wrappers.
      params: arrays, or `jax.ShapeDtypeStruct`s with a `sharding`.
      axis_sizes: for `zero(..., axis_name=...)`: mapped axis -> number of devices.

    Returns:
      The decisions; `rows` has each array of the state. What all parameters share has the path "-".

    >>> params = {"b": jnp.ones(8), "w": jnp.ones((128, 512))}
    >>> print(jl.explain(jl.partition({"b": jl.freeze(), "*": jl.sgd(0.1, momentum=0.9)}), params))
    path  group  rule      field  dtype    shape       bytes
    ----  -----  --------  -----  -------  ----------  -------
    b     b      -         -      -        (8,)        0
    w     *      momentum  trace  float32  (128, 512)  262,144
    <BLANKLINE>
    total       bytes
    ----------  -------
    trace       262,144
    group b     0
    group *     262,144
    state       262,144
    parameters  262,176
    >>> mesh = jax.sharding.AbstractMesh((8,), ("data",))
    >>> print(jl.explain(jl.zero(jl.stored(jl.adam(1e-3), nu=jl.int8()), mesh, "data"), params))
    path  rule    field  dtype    shape       bytes    where
    ----  ------  -----  -------  ----------  -------  -----
    -     stored  step   int32    ()          4        whole
    -     stored  seed   uint32   ()          4        whole
    -     adam    count  int32    ()          4        whole
    b     adam    mu     float32  (8,)        32       whole
    b     adam    nu     float32  (8,)        32       whole
    w     adam    mu     float32  (128, 512)  262,144  data
    w     adam    nu     int8     (128, 512)  67,584   data
    <BLANKLINE>
    wrapper  path  shape       where        bytes   reason
    -------  ----  ----------  -----------  ------  ---------------------------------------------
    zero     b     (8,)        whole        64      32 bytes, under 65536: not worth a collective
    zero     w     (128, 512)  data         41,216  dimension 0
    stored   b     (8,)        nu: float32  32      8 elements, under 4096
    stored   w     (128, 512)  nu: int8     67,584  given; never negative
    <BLANKLINE>
    total       bytes    on one device
    ----------  -------  -------------
    step        4        4
    seed        4        4
    count       4        4
    mu          262,176  32,800
    nu          67,616   8,480
    state       329,804  41,292
    parameters  262,176
    """
    mapped = axis_sizes or {}
    state, _ = abstract_init(rule, params, mapped)
    rows = state_rows(state, params, tuple(mapped.values()))
    decisions = [_undecided(row) for row in rows if not row.is_decided]
    found: list[Decision] = []
    for node in jax.tree.leaves(state, is_leaf=lambda x: is_zero(x) or is_offloaded(x)):
        if is_offloaded(node):
            found += _offloaded(node, params)
            node = node.inner
        for zero in filter(is_zero, jax.tree.leaves(node, is_leaf=is_zero)):
            found += _divided(zero, params, math.prod(mapped.values()))
    for node in filter(is_stored, jax.tree.leaves(state, is_leaf=is_stored)):
        found += _stored(node)
    known = {row.path for row in found}
    decisions = [row for row in decisions if row.wrapper != NONE or row.bytes or row.path not in known]
    return Explanation(decisions + found, rows, sum(_bytes(x) for x in jax.tree.leaves(params)))


def _undecided(row: StateRow) -> Decision:
    if row.field == NONE and row.dtype == NONE:
        return Decision(row.rule, row.path, row.shape, NONE, 0, "no state")
    where = f"{row.field}: {row.dtype}"
    return Decision(row.rule, row.path, row.shape, where, row.bytes, "as the rule keeps it")


def _bytes(x: Any) -> int:
    x = x if hasattr(x, "dtype") else jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x))
    return x.size * bits_of(x) // 8


def _stored(node: StoredState) -> list[Decision]:
    rows = []
    leaves = jax.tree.leaves(node.inner, is_leaf=is_encoded)
    for c, x in zip(node.plan.choices, leaves, strict=True):
        if c.format is not None:
            held = c.format.bytes(c.shape)
            rows.append(Decision("stored", c.path, c.shape, f"{c.field}: {c.format.name}", held, c.reason))
        elif c.reason != NOT_GIVEN:
            held = math.prod(c.shape) * bits_of(x) // 8
            rows.append(Decision("stored", c.path, c.shape, f"{c.field}: {x.dtype}", held, c.reason))
    return rows


def _members(inner: Any, owners: Sequence[int | None], count: int, params: Params) -> list[tuple[str, Any]]:
    """Path and shape of each parameter that a wrapper holds; it may stand around a part of them."""
    paths, leaves = leaf_paths(params), jax.tree.leaves(params)
    if count == len(paths):
        return [(path, tuple(jnp.shape(x))) for path, x in zip(paths, leaves, strict=True)]
    keys = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    index, found = Owners(keys), [(f"#{i}", tuple[int, ...]()) for i in range(count)]
    for (path, _), owner in zip(jax.tree_util.tree_flatten_with_path(inner)[0], owners, strict=True):
        number = None if owner is None else index.first(path)
        if owner is not None and number is not None:
            found[owner] = paths[number], tuple(jnp.shape(leaves[number]))
    return found


def _by_owner(owners: Sequence[int | None]) -> dict[int | None, list[int]]:
    found: dict[int | None, list[int]] = {}
    for j, owner in enumerate(owners):
        found.setdefault(owner, []).append(j)
    return found


def _divided(node: ZeroState, params: Params, copies: int) -> list[Decision]:
    layout, mine = node.layout, _by_owner(node.layout.owners)
    members = _members(node.inner, layout.owners, len(layout.params), params)
    placed = placed_leaves(node, max(copies, 1))
    rows = []
    for i, ((path, shape), cut) in enumerate(zip(members, layout.params, strict=True)):
        held = sum(placed[j].device_bytes for j in mine.get(i, ()))
        if cut is not None and cut.dim is None:
            where = "flat"
        elif layout.mesh is not None:
            where = in_words(layout.share_specs[i])
        else:
            where = "whole" if cut is None or cut.dim is None else axes_of(layout, cut.dim)
        rows.append(Decision("zero", path, shape, where, held, layout.reasons[i]))
    return rows


def _offloaded(node: OffloadState, params: Params) -> list[Decision]:
    hosted, mine = node.hosted, _by_owner(node.hosted.owners)
    inner = jax.tree.leaves(node.inner)
    rows = []
    members = _members(node.inner, hosted.owners, len(hosted.layers), params)
    for i, (path, shape) in enumerate(members):
        moved = [j for j in mine.get(i, ()) if hosted.on_host[j]]
        way = f", streamed {hosted.ways[i]}" if i < len(hosted.ways) else ""
        why = f"{len(moved)} of {len(mine.get(i, ()))} leaves in host memory{way}"
        held = sum(_bytes(inner[j]) for j in mine.get(i, ()) if not hosted.on_host[j])
        where = "host" if moved else "device"
        rows.append(Decision("offload", path, shape, where, held, why if moved else "not chosen, or small"))
    return rows
