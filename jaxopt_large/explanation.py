"""What a rule keeps for each parameter, and what `zero`, `offload` and `stored` decided, as a table."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from ._nodes import Decision, StateNode, answers, bytes_of, nodes_in
from ._state_rows import NONE, StateRow, state_rows
from ._tables import Table, fields_of, table
from ._types import AnyRule, Params
from .matrix.account import MatrixRow, MatrixRows, matrix_rows
from .placement.shardings import abstract_init

is_placed = answers(StateNode.places)
_MOST_PRINTED = 60  # rows of a table: more than fit on a screen or two


class StateRows(Table):
    """One `StateRow` for each array of a state."""

    columns = ("path", "group", "rule", "field", "dtype", "shape", "bytes", "where")
    skips_empty = True
    most_printed = _MOST_PRINTED


class Explanation(Table):
    """Decisions: one per parameter and wrapper, and one per array that no wrapper holds.

    Printed, the arrays of the state, matrices and who works on them, what wrappers decided, and totals: a
    table of each. Of many rows the first are printed.

    Attributes:
      rows: a `StateRow` for each array of the state and each parameter without state, all of them.
      matrices: a `MatrixRow` for each leaf that a rule works on as matrices.
      parameter_bytes: of all the parameters.
    """

    columns = Decision._fields
    most_printed = _MOST_PRINTED
    rows: StateRows
    matrices: MatrixRows
    parameter_bytes: int
    _wrappers: frozenset[str]

    def __new__(  # noqa: D102
        cls,
        decisions: Iterable[Decision],
        rows: Iterable[StateRow] = (),
        parameter_bytes: int = 0,
        wrappers: Iterable[str] = (),
        matrices: Iterable[MatrixRow] = (),
    ) -> "Explanation":
        made = super().__new__(cls, decisions)
        made.matrices = MatrixRows(matrices)
        made.rows, made.parameter_bytes = StateRows(rows), parameter_bytes
        made._wrappers = frozenset(wrappers)
        return made

    @property
    def state_bytes(self) -> int:
        """Of the whole state; inside mapped axes, of one device's."""
        return sum(row.bytes for row in self.rows)

    def __str__(self) -> str:
        wrapped = Explanation(row for row in self if row.wrapper in self._wrappers)
        tables = [str(x) for x in (self.rows, self.matrices) if x]
        return "\n\n".join([*tables, *([Table.__str__(wrapped)] if wrapped else []), self._totals()])

    def to_json(self) -> str:
        """The rows, the matrices, the decisions and the bytes of all parameters, as JSON."""
        parts = {"rows": self.rows, "matrices": self.matrices, "decisions": self}
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
    nodes = [node for node, _, _ in nodes_in(state, StateNode.decisions)]
    nodes.sort(key=lambda node: not is_placed(node))  # first where arrays are, then how they are kept
    found = [row for node in nodes for row in node.decisions(params, math.prod(mapped.values()))]
    known = {row.path for row in found}
    decisions = [row for row in decisions if row.wrapper != NONE or row.bytes or row.path not in known]
    size = sum(bytes_of(x) for x in jax.tree.leaves(params))
    wrappers = {row.wrapper for row in found}
    return Explanation(decisions + found, rows, size, wrappers, matrix_rows(state))


def _undecided(row: StateRow) -> Decision:
    if row.field == NONE and row.dtype == NONE:
        return Decision(row.rule, row.path, row.shape, NONE, 0, "no state")
    where = f"{row.field}: {row.dtype}"
    return Decision(row.rule, row.path, row.shape, where, row.bytes, "as the rule keeps it")
