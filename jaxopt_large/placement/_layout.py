"""Where each parameter and each leaf of the state stands: decided once, by `init`."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from .._errors import Problems
from .._gradients import Gradients, add_other_shapes
from .._static import StaticNode
from .._types import Params, State
from ._cuts import Cut


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Layout(StaticNode):
    """The placement of a state, part of its tree structure and not of its leaves.

    Attributes:
      axes: the mesh axes, or the one mapped axis, over which the state is divided.
      shares: into how many parts.
      mesh: the mesh; None inside mapped axes.
      params: for each parameter, how its share is cut; None where it follows the parameter.
      state: for each leaf of the inner state, how it is cut; None where it is stored as it is.
      param_shapes: each parameter's shape, as `update` gets it.
      shapes: for each leaf of the inner state, its shape before cutting.
      owners: for each leaf of the inner state, the parameter on its path; None for what all share.
      param_specs: each parameter's spec, into which the updates return.
      share_specs: the spec of each parameter's share; of the parameter itself where it is flattened.
      state_specs: each state leaf's spec, as stored.
      reasons: for each parameter, why it is placed so.
    """

    axes: tuple[str, ...]
    shares: int
    mesh: Any
    params: tuple[Cut | None, ...]
    state: tuple[Cut | None, ...]
    param_shapes: tuple[tuple[int, ...], ...]
    shapes: tuple[tuple[int, ...], ...]
    owners: tuple[int | None, ...]
    param_specs: tuple[PartitionSpec, ...] = ()
    share_specs: tuple[PartitionSpec, ...] = ()
    state_specs: tuple[PartitionSpec, ...] = ()
    reasons: tuple[str, ...] = ()

    def state_shardings(self, inner: State) -> Any:
        """A tree like `inner` of shardings."""
        shardings = [NamedSharding(self.mesh, spec) for spec in self.state_specs]
        return jax.tree.structure(inner).unflatten(shardings)


class MissingAxisError(ValueError):
    """A mapped axis is not there."""


def check_updates(layout: Layout, gradients: Gradients, params: Params | None) -> None:
    """Raises unless gradients, and parameters where given, are those of the parameters in `init`.

    A gradient may be missing; the rule says whether it can do without.
    """
    problems, expected = Problems("zero"), list(layout.param_shapes)
    given = {"gradients": gradients.leaves}
    if params is not None:
        given["parameters"] = jax.tree.leaves(params)
    for what, leaves in given.items():
        if len(leaves) != len(expected):
            problems.add(f"there are {len(leaves)} {what}", allowed=f"init got {len(expected)}")
        else:
            add_other_shapes(problems, f"one of the {what}", leaves, expected, gradients.treedef)
    problems.raise_if_any()


def sharding_of(x: Any) -> Any:
    """The sharding of a concrete array or of a `jax.ShapeDtypeStruct`; None for a tracer."""
    return None if isinstance(x, jax.core.Tracer) else getattr(x, "sharding", None)


def without_aliases(state: State, params: Params) -> State:
    """`state` with its own copy of every array that is a parameter or stands in it twice.

    A buffer that stands in two places cannot be donated.
    """
    seen = {id(x) for x in jax.tree.leaves(params)}

    def own(x: Any) -> Any:
        x = jnp.copy(x) if id(x) in seen else x
        seen.add(id(x))
        return x

    return jax.tree.map(own, state)
