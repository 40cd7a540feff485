"""The state of `stored`: what it holds, and what it answers for itself."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Int, UInt32

from .._encoded import Coding, Encoded, is_encoded
from .._nodes import Decision, StateNode, bits_of
from .._static import StaticNode
from .._types import Params, State
from ._choices import NOT_GIVEN, Choice


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class StoredPlan(StaticNode):
    """What `stored` decided, part of the state's structure.

    Attributes:
      choices: one for each leaf of the inner state.
      codings: of those that are encoded; None for the others.
    """

    choices: tuple[Choice, ...]
    codings: tuple[Coding | None, ...]


class _StoredFields(NamedTuple):
    step: Int[Array, ""]
    seed: UInt32[Array, ""]
    residuals: Any
    inner: State
    plan: StoredPlan


class StoredState(_StoredFields, StateNode):
    """State of `stored`.

    Attributes:
      step: steps taken; with the seed all there is to random rounding.
      seed: of random rounding.
      residuals: of split parameters, int8, like the parameters; None where there is none.
      inner: the wrapped rule's, with `Encoded` arrays in it.
      plan: what was decided.
    """

    __slots__ = ()
    own = ("step", "seed", "residuals")

    def decisions(self, params: Params, copies: int) -> list[Decision]:
        """Of each array of the inner state that has a format, or was to have one."""
        del params, copies
        rows = []
        leaves = jax.tree.leaves(self.inner, is_leaf=is_encoded)
        for c, x in zip(self.plan.choices, leaves, strict=True):
            if c.format is not None:
                name, held = c.format.name, c.format.bytes(c.shape)
            elif c.reason != NOT_GIVEN:
                name, held = str(x.dtype), math.prod(c.shape) * bits_of(x) // 8
            else:
                continue
            rows.append(Decision("stored", c.path, c.shape, f"{c.field}: {name}", held, c.reason))
        return rows


def put_together(inner: State, plan: StoredPlan) -> State:
    """The state with its arrays encoded, where codes and scales come in a mapping.

    `flax.nnx.Optimizer` hands back what it was given, except for what stands in the place of an array: there
    it turns every node into a mapping of its own.
    """
    nodes, treedef = jax.tree.flatten(inner, is_leaf=lambda x: is_encoded(x) or _is_taken_apart(x))
    if len(nodes) != len(plan.codings) or not any(_is_taken_apart(x) for x in nodes):
        return inner
    return treedef.unflatten(
        [
            Encoded(x["codes"], x.get("scales"), coding) if coding and _is_taken_apart(x) else x
            for x, coding in zip(nodes, plan.codings, strict=True)
        ]
    )


def _is_taken_apart(x: Any) -> bool:
    return isinstance(x, Mapping) and set(x) in ({"codes"}, {"codes", "scales"})
