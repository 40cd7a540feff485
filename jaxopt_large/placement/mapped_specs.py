"""The spec of every leaf of a rule's state that lives inside `shard_map`."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import PartitionSpec

from .._nodes import StateNode, answers
from .._owners import Owners
from .._partition import respelled
from .._types import AnyRule, Params
from ._layout import MissingAxisError
from .shardings import abstract_init


def mapped_state_specs(
    rule: AnyRule,
    params: Params,
    axis_sizes: Mapping[str, int],
    *,
    specs: Any = None,
) -> Any:
    """The specs of `rule.init(params)` inside `shard_map`, for its `in_specs` and `out_specs`.

    Args:
      rule: a rule with `zero(..., axis_name=...)` in it.
      params: what `init` is given inside, arrays or shapes: where other axes divide parameters, the
        parts that one device has.
      axis_sizes: mapped axis -> number of devices along it.
      specs: the `in_specs` of the parameters, where other axes than that of `zero` divide them
        (tensor parallelism).

    Returns:
      A tree of `PartitionSpec`s with the structure of the state: shares are divided along the dimension
      that is cut, and like their parameter; all else is replicated.

    Raises:
      ValueError: the axis of a `zero` is not in `axis_sizes`.

    >>> rule = jl.zero(jl.adam(1e-3), axis_name="data")
    >>> state = jl.mapped_state_specs(rule, {"w": jnp.ones((64, 512))}, {"data": 8})
    >>> tuple(state.inner[0].mu["w"]), tuple(state.inner[0].count)
    (('data',), ())
    """
    try:
        state, _ = abstract_init(rule, params, axis_sizes)
    except MissingAxisError as error:
        given = ", ".join(map(repr, axis_sizes)) or "none"
        raise MissingAxisError(f"{error} The mapped axes given are {given}.") from error
    like = jax.tree.structure(params)
    divided = (
        [PartitionSpec()] * like.num_leaves
        if specs is None
        else like.flatten_up_to(_broadcast_specs(specs, params))
    )

    keys = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    owners = Owners(keys)
    shapes = [tuple(x.shape) for x in jax.tree.leaves(params)]
    copies = len(axis_sizes)  # axes that `abstract_init` adds in front

    def outside(path: Any, shape: tuple[int, ...]) -> PartitionSpec:
        """Of a leaf that no `zero` divides: like the parameter on its path whose shape it has."""
        same = (i for i in owners.of(path) if shapes[i] == shape)
        return next((respelled(divided[i], len(shape)) for i in same), PartitionSpec())

    is_divided = answers(StateNode.mapped_specs)

    def place(path: Any, node: Any) -> Any:
        if not is_divided(node):
            return outside(path, tuple(node.shape[copies:]))
        return node.mapped_specs(lambda below, shape: outside((*path, *below), shape), divided, copies)

    return jax.tree_util.tree_map_with_path(place, state, is_leaf=is_divided)


def _broadcast_specs(specs: Any, params: Params) -> Any:
    """One spec for each parameter, from a tree of specs or a prefix of one."""
    return jax.tree.map(
        lambda spec, part: jax.tree.map(lambda _: spec, part),
        specs,
        params,
        is_leaf=lambda x: isinstance(x, PartitionSpec),
    )
