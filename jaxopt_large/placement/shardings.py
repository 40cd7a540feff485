"""The spec and the sharding of every leaf of a rule's state, before anything is allocated."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from .._errors import Problems, check_rule, message
from .._known_shardings import known_shardings
from .._nodes import StateNode, answers, map_nodes, nodes_in
from .._paths import leaf_paths
from .._types import AnyRule, Params, as_leaves
from ._layout import sharding_of, without_aliases
from ._layout_jit import checked_mesh, param_specs
from ._specs import infer_specs

_WHO = "state_shardings"


def abstract_state(
    rule: AnyRule,
    params: Params,
    mesh: Mesh | AbstractMesh | None = None,
    *,
    specs: Mapping[str, PartitionSpec] | None = None,
) -> Any:
    """The state of `rule` as `jax.ShapeDtypeStruct`s with shardings: for compiling, planning, restoring.

    `jax.eval_shape(rule.init, params)` does not see how parameters are sharded, so that `zero` would
    take them for replicated. Args and errors are those of `state_specs`.

    >>> mesh = jax.sharding.AbstractMesh((8,), ("data",))
    >>> state = jl.abstract_state(jl.zero(jl.adam(1e-3), mesh, "data"), {"w": jnp.ones((64, 512))})
    >>> state.inner[0].mu["w"].sharding.shard_shape((64, 512))
    (8, 512)
    """
    state, _ = abstract_init(rule, params)
    shardings = state_shardings(rule, params, mesh, specs=specs)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)


def state_specs(
    rule: AnyRule,
    params: Params,
    mesh: Mesh | AbstractMesh | None = None,
    *,
    specs: Mapping[str, PartitionSpec] | None = None,
) -> Any:
    """How mesh axes divide each leaf of the state of `rule`, for any rule of ours or optax's.

    A leaf under `zero` is as `zero` places it. Any other leaf has, in this order: the spec that
    `specs` gives it; that of the parameter on its path whose shape it has; the spec in its type when
    `init` is evaluated with Explicit axes; the spec of its dimensions, where they are some of a
    parameter's (factored moments) or a parameter's and more (histories). Scalars are replicated.

    Args:
      rule: any rule; `zero` may stand anywhere inside.
      params: arrays, or `jax.ShapeDtypeStruct`s with a `sharding`.
      mesh: by default the one on which the parameters live.
      specs: glob over state paths -> PartitionSpec, for leaves that follow no parameter.

    Returns:
      A tree of `PartitionSpec`s with the structure of the state.

    Raises:
      ValueError: a leaf of more than 64 KiB follows no parameter although parameters are divided; the
        parameters live on another mesh; a given spec fits no leaf.
      TypeError: rule is not a rule, a parameter not an array, or mesh not a mesh.

    >>> mesh = jax.sharding.AbstractMesh((4, 2), ("data", "model"))
    >>> sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data", "model"))
    >>> params = {"w": jax.ShapeDtypeStruct((256, 128), jnp.float32, sharding=sharding)}
    >>> state = jl.state_specs(optax.adafactor(1e-3), params)
    >>> tuple(state[0].v_row["w"]), tuple(state[0].v_col["w"])
    (('model',), ('data',))
    """
    return jax.tree.map(
        lambda s: s.spec if isinstance(s, NamedSharding) else PartitionSpec(),
        state_shardings(rule, params, mesh, specs=specs),
    )


def state_shardings(
    rule: AnyRule,
    params: Params,
    mesh: Mesh | AbstractMesh | None = None,
    *,
    specs: Mapping[str, PartitionSpec] | None = None,
) -> Any:
    """Where `rule.init(params)` belongs, for `jit`'s `out_shardings` and for checkpoints.

    Args and errors are those of `state_specs`.

    Returns:
      A tree of shardings with the structure of the state.

    >>> params = {"w": jnp.ones((4, 4))}
    >>> [s.num_devices for s in jax.tree.leaves(jl.state_shardings(jl.adam(1e-3), params))]
    [1, 1, 1]
    """
    mesh = None if mesh is None else checked_mesh(_WHO, mesh)
    params = as_leaves(params)
    state, shardings = abstract_init(rule, params)
    mesh = mesh or _mesh_of([*shardings.values()], state)
    whole = [PartitionSpec()] * len(jax.tree.leaves(params))
    divided = whole if mesh is None else param_specs(_WHO, params, mesh)

    places_itself = answers(StateNode.shardings)

    def outside(state: Any) -> Any:
        """The state without what a node places already."""
        return jax.tree.map(lambda x: None if places_itself(x) else x, state, is_leaf=places_itself)

    followed = infer_specs(
        _WHO, lambda params: outside(rule.init(params)), outside(state), params, divided, mesh, specs
    )
    everywhere = _everywhere(mesh, [*shardings.values()])
    found = iter(followed)

    def place(leaf: Any) -> Sharding:
        del leaf
        spec = next(found).spec
        return everywhere if mesh is None else NamedSharding(mesh, spec)

    placed = map_nodes(StateNode.shardings, lambda node: node.shardings(), place, state)
    return map_nodes(StateNode.in_memory, lambda node: node.in_memory(), lambda s: s, placed)


def gradient_shardings(rule: AnyRule, params: Params) -> Any:
    """Where `zero` keeps its share of each gradient, for accumulators and for `jit`'s shardings.

    Args:
      rule: a rule with `zero(..., mesh, axis)` at its root or inside, over all the parameters.
      params: arrays, or `jax.ShapeDtypeStruct`s with a `sharding`.

    Returns:
      A tree of shardings like `params`; a leaf that is stored flat has its parameter's.

    Raises:
      ValueError: there is no `zero` over all the parameters.
    """
    found = gradients_of(abstract_init(rule, params)[0], params)
    if found is None:
        wrong = "no zero over all the parameters is in the rule"
        raise ValueError(message("gradient_shardings", wrong, do="Wrap it in zero"))
    return found


def gradients_of(state: Any, params: Params) -> Any:
    """Where a `zero` over all the parameters keeps its share of each gradient; None where there is none."""
    leaves, treedef = jax.tree.flatten(params)
    for node, _, _ in nodes_in(state, StateNode.gradient_shardings):
        found = node.gradient_shardings(len(leaves))
        if found is not None:
            return treedef.unflatten(found)
    return None


def abstract_init(
    rule: AnyRule, params: Params, axis_sizes: Mapping[str, int] | None = None
) -> tuple[Any, dict[Any, Sharding]]:
    """The state's shapes, and key path -> sharding of the parameters that have one.

    Inside mapped axes each leaf has an axis in front for each of them.
    """
    check_rule(_WHO, rule)
    init = rule.init
    for name, size in (axis_sizes or {}).items():
        init = jax.vmap(init, in_axes=None, out_axes=0, axis_name=name, axis_size=size)
    check_arrays(_WHO, params)
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    shardings = {path: sharding_of(x) for path, x in leaves if sharding_of(x) is not None}
    with known_shardings(shardings):
        # a function of its own: JAX would find a trace of `init` made without the shardings
        return jax.eval_shape(lambda params: init(params), params), shardings


def init_state(rule: AnyRule, params: Params) -> Any:
    """`rule.init(params)`, each leaf where `state_shardings` says, never whole on one device.

    Use it where the outermost wrapper is not `zero`, or where there is none: `jax.jit(rule.init)` sees no
    shardings under Auto axes, and a step that gets leaves in other places than it returns them in
    compiles twice.

    Args:
      rule: any rule, outside of mapped axes.
      params: arrays.

    >>> mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> params = jax.device_put(jnp.ones(8), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    >>> state = jl.init_state(optax.chain(optax.scale_by_schedule(lambda _: 1.0), jl.adam(1e-3)), params)
    >>> state[0].count.sharding == state[1][0].mu.sharding
    True
    """
    params = as_leaves(params)
    return placed_init(rule, params, state_shardings(rule, params))


def placed_init(rule: AnyRule, params: Params, shardings: Any) -> Any:
    """`rule.init(params)` with given shardings, by a program that knows where the parameters are."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]

    def init(params: Params) -> Any:
        with known_shardings({path: sharding_of(x) for path, x in leaves if sharding_of(x) is not None}):
            return without_aliases(rule.init(params), params)

    return jax.jit(init, out_shardings=shardings)(params)


def check_arrays(who: str, params: Params) -> None:
    """Raises TypeError where a parameter is neither an array nor a number."""
    problems = Problems(who)
    for path, x in zip(leaf_paths(params), jax.tree.leaves(params), strict=True):
        if not hasattr(x, "dtype") and not isinstance(x, bool | int | float | complex):
            problems.add(f"a parameter is not an array, got {x!r}", at=path or "the root")
    problems.raise_if_any(TypeError)


def _mesh_of(shardings: list[Sharding], state: Any) -> Any:
    """The mesh of the parameters, else that of a node that places its arrays; None when there is none."""
    meshes = [s.mesh for s in shardings if isinstance(s, NamedSharding)]
    meshes += [node.mesh() for node, _, _ in nodes_in(state, StateNode.mesh)]
    return meshes[0] if meshes else None


def _everywhere(mesh: Any, shardings: list[Sharding]) -> Sharding:
    """Replicated over the mesh in use; the one device when there is no mesh."""
    if mesh is not None:
        return NamedSharding(mesh, PartitionSpec())
    return shardings[0] if shardings else SingleDeviceSharding(jax.devices()[0])
