"""`zero` under jit: shardings of the state say it all, XLA derives the collectives."""

import math
from typing import Any

import jax
import optax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array

from .._compat import reshard
from .._errors import message
from .._paths import leaf_paths
from .._types import AnyRule, Params, Rule, State, Updates, make_rule
from ._cuts import choose_cut, cut_spec, entry, normal_spec
from ._known import known_sharding
from ._layout import Layout, ZeroState, follow, sharding_of, spec_of


def zero_in_jit(rule: AnyRule, mesh: Any, axes: tuple[str, ...]) -> Rule:
    rule = optax.with_extra_args_support(rule)

    def init(params: Params) -> ZeroState:
        layout, abstract = _plan(rule, params, mesh, axes)

        def shares(params: Params) -> State:
            return rule.init(_padded(params, layout))

        if isinstance(mesh, AbstractMesh):
            return ZeroState(shares(params), layout)
        make = jax.jit(shares, out_shardings=layout.state_shardings(abstract))
        return ZeroState(make(params), layout)

    def update(
        updates: Updates, state: ZeroState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ZeroState]:
        layout = state.layout
        if layout.mesh != mesh:
            raise ValueError(
                message(
                    "zero",
                    f"the state was made for another mesh, {_describe(layout.mesh)}",
                    allowed=f"this rule's mesh is {_describe(mesh)}",
                    do="Save the state and restore it on this mesh",
                )
            )
        shapes = [x.shape for x in jax.tree.leaves(updates)]
        gradients = _placed(_padded(updates, layout), mesh, layout.share_specs)
        values = None if params is None else _placed(_padded(params, layout), mesh, layout.share_specs)
        changes, inner = rule.update(gradients, state.inner, values, **extra)
        inner = _placed(inner, mesh, layout.state_specs)
        leaves, treedef = jax.tree.flatten(_placed(changes, mesh, layout.param_specs))
        whole = [
            cut.unpad(u, shape) if cut else u
            for u, cut, shape in zip(leaves, layout.params, shapes, strict=True)
        ]
        return treedef.unflatten(whole), ZeroState(inner, layout)

    return make_rule(init, update)


def _plan(rule: Rule, params: Params, mesh: Any, axes: tuple[str, ...]) -> tuple[Layout, State]:
    """The layout for `params`, and the inner state's shapes."""
    leaves, treedef = jax.tree.flatten(params)
    specs = _param_specs(params, mesh)
    shares = math.prod(mesh.shape[a] for a in axes)
    cuts, share_specs = [], []
    for leaf, spec in zip(leaves, specs, strict=True):
        taken = {name for dim in range(leaf.ndim) for name in entry(spec, dim)}
        cut = None if leaf.ndim == 0 or taken & set(axes) else choose_cut(leaf.shape, shares, spec, mesh)
        cuts.append(cut)
        share_specs.append(cut_spec(spec, cut, axes, leaf.ndim) if cut else spec)
    padded_shapes = [c.padded_shape(x.shape) if c else x.shape for c, x in zip(cuts, leaves, strict=True)]
    padded = [jax.ShapeDtypeStruct(s, x.dtype) for s, x in zip(padded_shapes, leaves, strict=True)]
    abstract = jax.eval_shape(rule.init, treedef.unflatten(padded))
    followed = follow("zero", abstract, params, lambda i: padded_shapes[i])
    layout = Layout(
        axes=axes,
        shares=shares,
        mesh=mesh,
        params=tuple(cuts),
        state=tuple(None if f.param is None else cuts[f.param] for f in followed),
        shapes=tuple(
            x.shape if f.param is None else leaves[f.param].shape
            for f, x in zip(followed, jax.tree.leaves(abstract), strict=True)
        ),
        param_specs=tuple(specs),
        share_specs=tuple(share_specs),
        state_specs=tuple(PartitionSpec() if f.param is None else share_specs[f.param] for f in followed),
    )
    return layout, abstract


def _param_specs(params: Params, mesh: Any) -> list[PartitionSpec]:
    specs = []
    for i, leaf in enumerate(jax.tree.leaves(params)):
        sharding = known_sharding(i, params) or sharding_of(leaf)
        if isinstance(sharding, NamedSharding) and not _same_devices(sharding.mesh, mesh):
            raise ValueError(
                message(
                    "zero",
                    f"a parameter lives on another mesh, {_describe(sharding.mesh)}",
                    at=leaf_paths(params)[i],
                    allowed=f"this rule's mesh is {_describe(mesh)}",
                    do="Build both with one mesh",
                )
            )
        if sharding is None and _is_explicit(mesh):
            specs.append(_explicit_spec(leaf))
        else:
            specs.append(spec_of(sharding, leaf.ndim))
    return specs


def _same_devices(one: Any, other: Any) -> bool:
    if one.shape != other.shape:
        return False
    concrete = not isinstance(one, AbstractMesh) and not isinstance(other, AbstractMesh)
    return not concrete or list(one.devices.flat) == list(other.devices.flat)


def _is_explicit(mesh: Any) -> bool:
    return AxisType.Explicit in mesh.axis_types


def _explicit_spec(leaf: Array) -> PartitionSpec:
    """Under Explicit axes a traced parameter's type tells its spec."""
    spec = getattr(getattr(jax.typeof(leaf), "sharding", None), "spec", PartitionSpec())
    return normal_spec([entry(spec, dim) for dim in range(leaf.ndim)])


def _padded(tree: Any, layout: Layout) -> Any:
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten([cut.pad(x) if cut else x for x, cut in zip(leaves, layout.params, strict=True)])


def _placed(tree: Any, mesh: Any, specs: tuple[PartitionSpec, ...]) -> Any:
    """`tree` with each leaf laid out as its spec says."""
    leaves, treedef = jax.tree.flatten(tree)
    if isinstance(mesh, AbstractMesh):
        return tree
    move = reshard if _is_explicit(mesh) else jax.lax.with_sharding_constraint
    return treedef.unflatten(
        [move(x, NamedSharding(mesh, spec)) for x, spec in zip(leaves, specs, strict=True)]
    )


def _describe(mesh: Any) -> str:
    sizes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
    return f"({sizes})"
