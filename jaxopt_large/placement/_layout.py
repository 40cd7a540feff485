"""Where each parameter and each leaf of the state stands: decided once, by `init`."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec

from .._errors import Problems
from .._paths import path_string
from .._types import Params, State
from ._cuts import Cut, normal_spec


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Layout:
    """The placement of a state, part of its tree structure and not of its leaves.

    Attributes:
      axes: the mesh axes, or the one mapped axis, over which the state is divided.
      shares: into how many parts.
      mesh: the mesh; None inside mapped axes.
      params: for each parameter, how its share is cut; None where it follows the parameter.
      state: for each leaf of the inner state, how it is cut; None where it is whole.
      shapes: for each leaf of the inner state, its shape before padding.
      param_specs: each parameter's spec, into which the updates return.
      share_specs: each parameter's spec inside the inner rule.
      state_specs: each state leaf's spec.
    """

    axes: tuple[str, ...]
    shares: int
    mesh: Any
    params: tuple[Cut | None, ...]
    state: tuple[Cut | None, ...]
    shapes: tuple[tuple[int, ...], ...]
    param_specs: tuple[PartitionSpec, ...] = ()
    share_specs: tuple[PartitionSpec, ...] = ()
    state_specs: tuple[PartitionSpec, ...] = ()

    def state_shardings(self, inner: State) -> Any:
        """A tree like `inner` of shardings."""
        shardings = [NamedSharding(self.mesh, spec) for spec in self.state_specs]
        return jax.tree.structure(inner).unflatten(shardings)


class ZeroState(NamedTuple):
    """State of `zero`: the wrapped rule's, divided, and how."""

    inner: State
    layout: Layout


class Followed(NamedTuple):
    """What a state leaf inherits from the parameter that it follows; None: it is a scalar."""

    param: int | None


def follow(
    who: str, state: State, params: Params, shape_of: Callable[[int], tuple[int, ...]]
) -> list[Followed]:
    """For each leaf of `state`, which parameter it follows: its path ends in the parameter's, and it
    has the shape that `shape_of(index of the parameter)` gives.

    Raises:
      ValueError: a leaf with elements is neither a scalar nor shaped like a parameter.
    """
    keys = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    index = {path: i for i, path in enumerate(keys)}
    problems = Problems(who)
    found = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        candidates = [index[path[n:]] for n in range(len(path) + 1) if path[n:] in index]
        match = next((i for i in candidates if tuple(shape_of(i)) == tuple(leaf.shape)), None)
        if match is None and leaf.size > 1:
            problems.add(
                f"cannot tell how a state leaf of shape {tuple(leaf.shape)} follows the parameters",
                at=path_string(path),
                allowed="leaves shaped like their parameter, and scalars",
            )
        found.append(Followed(match))
    problems.raise_if_any(ValueError)
    return found


def sharding_of(x: Any) -> Any:
    """The sharding of a concrete array or of a `jax.ShapeDtypeStruct`; None for a tracer."""
    return None if isinstance(x, jax.core.Tracer) else getattr(x, "sharding", None)


def spec_of(sharding: Any, rank: int) -> PartitionSpec:
    """A named sharding's spec in its normal spelling; nothing is divided under any other kind."""
    spec = tuple(sharding.spec) if isinstance(sharding, NamedSharding) else ()
    return normal_spec([_names(spec[d]) if d < len(spec) else () for d in range(rank)])


def _names(part: Any) -> tuple[str, ...]:
    if part is None or part is PartitionSpec.UNCONSTRAINED:
        return ()
    return part if isinstance(part, tuple) else (part,)
