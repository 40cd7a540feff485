"""What a rule of matrices does with each leaf, and what it costs: for explanations."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from .._tables import Table
from ._spreads import spread_of, team_of
from ._transport import Parcel
from .owners import Batch, Member, batches
from .plan import MatrixPlan, has_plan
from .readings import Turned

_MOST_PRINTED = 60  # rows: more than fit on a screen or two
_WIDTH = 4  # bytes of an element as it travels; half of that where a rule reads half precision


class MatrixRow(NamedTuple):
    """A leaf that is worked on as matrices.

    Attributes:
      path: of the parameter.
      role: how it is read.
      matrices: how many, and of which shape: "3 x [16, 24]".
      group: of the matrices that are stacked with it, their shape.
      owner: the devices that work on it, by their number in the mesh; "-" on one device and in mapped axes.
      flops: of the work on it in a step, on all devices.
      bytes: that a device sends in a step to gather it and to give it back, at 4 bytes an element.
      waste: how much of its group's work is padding.
    """

    path: str
    role: str
    matrices: str
    group: str
    owner: str
    flops: float
    bytes: int
    waste: float


class MatrixRows(Table):
    """One `MatrixRow` for each leaf."""

    columns = ("path", "role", "matrices", "group", "owner", "flops", "bytes", "waste")
    skips_empty = True
    most_printed = _MOST_PRINTED

    def cell(self, row: MatrixRow, column: str) -> str:
        """What is printed of a row in a column."""
        if column == "flops":
            return f"{row.flops:.3g}"
        return f"{row.waste:.0%}" if column == "waste" else super().cell(row, column)


def matrix_rows(state: Any) -> MatrixRows:
    """A row for each leaf that a rule in `state` works on as matrices."""
    found: dict[tuple[Any, ...], list[MatrixPlan]] = {}
    for node in jax.tree.leaves(state, is_leaf=has_plan):
        if has_plan(node):
            plan = node.matrices
            found.setdefault((plan.leaves, plan.mesh, plan.owners), []).append(plan)
    return MatrixRows(row for plans in found.values() for row in _rows(plans))


def _rows(plans: list[MatrixPlan]) -> Iterator[MatrixRow]:
    """Of stages that work on the same leaves, one after another."""
    plan, turns = plans[0], all(p.transposes for p in plans)
    flops = [sum(p.flops[n] for p in plans if p.flops) for n in range(len(plan.leaves))]
    team = None if plan.mesh is None else team_of("explain", plan)
    members = []
    for n, leaf in enumerate(plan.leaves):
        view = leaf.view
        turned = turns and view.rows > view.columns
        shape = (view.columns, view.rows) if turned else (view.rows, view.columns)
        reading = Turned(view) if turned else view
        spreads = (spread_of(leaf, (), None, reading, plan, team),) if team else ()
        members.append(Member(n, shape, spreads))
    work = {n: x for b in batches(members, team) for n, x in _work(b).items()} if team else {}
    for n, leaf in enumerate(plan.leaves):
        view, member = leaf.view, members[n]
        owner, sent, waste = work.get(n, ("-", 0, 0.0))
        yield MatrixRow(
            leaf.path,
            leaf.role.text,
            f"{leaf.matrices} x [{view.rows}, {view.columns}]",
            "x".join(map(str, member.kind)),
            owner,
            float(flops[n]),
            sent,
            waste,
        )


def _work(batch: Batch) -> dict[int, tuple[str, int, float]]:
    """Number of a member -> who works on it, what a device sends for it, how much of its batch is padding."""
    units = sum(math.prod(m.spreads[0].shape[d] for d in m.spreads[0].units) for m in batch.members)
    waste, owners = 1.0 - units / (batch.rows * batch.team.devices), batch.owners()
    return {m.number: (owners[m.number], _sent(batch, m) * _WIDTH, waste) for m in batch.members}


def _sent(batch: Batch, member: Member) -> int:
    """The elements that a device sends to gather a member and to give it back."""
    parcel, local = Parcel(member.spreads, batch.team), math.prod(member.spreads[0].local)
    there_and_back = 2 * local if parcel.dividing.devices > 1 else 0
    repeated = local // parcel.repeating.devices if parcel.repeating.devices > 1 else 0
    return there_and_back + repeated
