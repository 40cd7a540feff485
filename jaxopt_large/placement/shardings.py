"""The sharding of every leaf of a rule's state, before anything is allocated."""

from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from .._types import AnyRule, Params
from ._known import known_shardings
from ._layout import ZeroState, follow, sharding_of


def state_shardings(rule: AnyRule, params: Params) -> Any:
    """Where `rule.init(params)` puts its leaves, for `jit`'s `out_shardings` and for checkpoints.

    Leaves under `zero` are where it places them; others follow the parameter whose shape they have,
    and scalars are replicated.

    Args:
      rule: any rule, ours or optax's; `zero` may stand anywhere inside.
      params: arrays, or `jax.ShapeDtypeStruct`s with a `sharding`.

    Returns:
      A tree of shardings with the structure of the state.

    Raises:
      ValueError: a leaf outside `zero` has elements but not the shape of its parameter.

    >>> params = {"w": jnp.ones((4, 4))}
    >>> [s.num_devices for s in jax.tree.leaves(jl.state_shardings(jl.adam(1e-3), params))]
    [1, 1, 1]
    """
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    shardings = {path: sharding_of(x) for path, x in leaves if sharding_of(x) is not None}
    with known_shardings(shardings):
        state = jax.eval_shape(rule.init, params)
    nodes, treedef = jax.tree.flatten(state, is_leaf=lambda x: isinstance(x, ZeroState))
    zeros = [x for x in nodes if isinstance(x, ZeroState)]
    scalar = _scalar_sharding([*shardings.values()], zeros)
    plain = treedef.unflatten([None if isinstance(x, ZeroState) else x for x in nodes])
    shapes = [x.shape for _, x in leaves]
    followed = iter(follow("state_shardings", plain, params, lambda i: shapes[i]))
    whole: list[Sharding] = [shardings.get(path, scalar) for path, _ in leaves]

    def place(node: Any) -> Any:
        if isinstance(node, ZeroState):
            return ZeroState(node.layout.state_shardings(node.inner), node.layout)
        param = next(followed).param
        return scalar if param is None else whole[param]

    return treedef.unflatten([place(x) for x in nodes])


def _scalar_sharding(shardings: list[Sharding], zeros: list[ZeroState]) -> Sharding:
    """Replicated over the mesh in use; the one device when there is no mesh."""
    meshes = [s.mesh for s in shardings if isinstance(s, NamedSharding)]
    meshes += [z.layout.mesh for z in zeros]
    if meshes:
        return NamedSharding(meshes[0], PartitionSpec())
    return shardings[0] if shardings else SingleDeviceSharding(jax.devices()[0])
