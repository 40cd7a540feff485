"""Where fields with an array for each matrix are, for who places a state: their plan has decided it."""

from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import PartitionSpec

from .._encoded import is_encoded
from .._partition import normal_spec
from ._spreads import field_spread, spread_of, team_of
from .plan import MatrixPlan, has_plan


def field_specs(state: Any) -> dict[int, PartitionSpec]:
    """The number of a leaf of a state -> its spec, for fields of matrices on a mesh."""
    found = {}
    for at, plan, number, shape in _fields(state):
        if plan.mesh is not None:
            leaf, team = plan.leaves[number], team_of("", plan)
            like = spread_of(leaf, (), None, leaf.view, plan, team)
            count = len(leaf.view.units) + (leaf.view.inner > 1)
            spread = field_spread(shape, shape[count:], leaf.view, like, team)
            found[at] = normal_spec(spread.axes)
    return found


def field_shapes(state: Any) -> dict[int, tuple[int, ...]]:
    """The number of a leaf of a state -> the shape of the whole, for fields of matrices."""
    return {at: shape for at, _, _, shape in _fields(state)}


def _fields(state: Any) -> Iterator[tuple[int, MatrixPlan, int, tuple[int, ...]]]:
    """Of each array: its number, the plan, the number of its leaf in the plan, and the whole shape."""
    at = 0
    for node in jax.tree.leaves(state, is_leaf=has_plan):
        if not has_plan(node):
            at += 1
            continue
        shapes = dict(node.matrices.fields)
        for name, part in zip(node._fields, node, strict=True):
            for number, x in enumerate(jax.tree.leaves(part, is_leaf=is_encoded)):
                if name in shapes:
                    yield at, node.matrices, number, shapes[name][number]
                at += len(jax.tree.leaves(x))
