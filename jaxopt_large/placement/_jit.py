"""`zero` under jit: shardings of the state say it all, XLA derives the collectives."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from .._axes import is_surrounded_by, surrounded_by
from .._compat import auto_axes, reshard
from .._errors import message
from .._types import AnyRule, Params, Rule, Updates, make_rule
from ._decisions import Options, describe_mesh, plan_layout
from ._layout import Layout, ZeroState, check_state, check_updates, without_aliases


def zero_in_jit(rule: AnyRule, mesh: Any, axes: tuple[str, ...], options: Options) -> Rule:
    rule = optax.with_extra_args_support(rule)
    explicit = AxisType.Explicit in mesh.axis_types

    def init(params: Params) -> ZeroState:
        check_order()
        with surrounded_by("zero"):
            layout, abstract = plan_layout(rule, params, mesh, axes, options)

            def shares(params: Params) -> list[Any]:
                state = without_aliases(rule.init(params), params)
                return _stored(jax.tree.leaves(state), layout)

            specs = list(layout.state_specs)
            if isinstance(mesh, AbstractMesh):
                leaves = shares(params)
            else:
                make = auto_axes(shares, mesh, specs) if explicit else shares
                shardings = [NamedSharding(mesh, spec) for spec in specs]
                leaves = jax.jit(make, out_shardings=shardings)(params)
        return ZeroState(jax.tree.structure(abstract).unflatten(leaves), layout)

    def update(
        updates: Updates, state: ZeroState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ZeroState]:
        check_state(state)
        layout = state.layout
        check_updates(layout, updates, params)
        if layout.mesh != mesh:
            raise ValueError(
                message(
                    "zero",
                    f"the state was made for another mesh, {describe_mesh(layout.mesh)}",
                    allowed=f"this rule's mesh is {describe_mesh(mesh)}",
                    do="Save the state and restore it on this mesh",
                )
            )
        inner, treedef = jax.tree.flatten(state.inner)
        arrays, rest = _arrays_and_rest(extra)

        def run(updates: Updates, inner: list[Any], params: Params | None, arrays: list[Any]) -> Any:
            place = _Placer(mesh, explicit)
            gradients = place(updates, layout.share_specs)
            values = None if params is None else place(params, layout.share_specs)
            logical = treedef.unflatten(_loaded(inner, layout))
            # compiled apart from what surrounds it, the rule rounds alike on every mesh
            gradients, values = jax.lax.optimization_barrier((gradients, values))
            with surrounded_by("zero"):
                changes, new = rule.update(gradients, logical, values, **rest(arrays))
            changes = jax.lax.optimization_barrier(changes)
            changes = place(place(changes, layout.share_specs), layout.param_specs)
            leaves = place(_stored(jax.tree.leaves(new), layout), layout.state_specs)
            return changes, leaves

        if explicit and not isinstance(mesh, AbstractMesh):
            updates = _reduced(updates, layout)
            out_specs = (
                jax.tree.structure(updates).unflatten(layout.param_specs),
                list(layout.state_specs),
            )
            run = auto_axes(run, mesh, out_specs)
        changes, leaves = run(updates, inner, params, arrays)
        return changes, ZeroState(treedef.unflatten(leaves), layout)

    return make_rule(init, update)


def check_order(*, mapped: bool = False) -> None:
    """Raises inside a wrapper inside which `zero` cannot do its work."""
    if is_surrounded_by("accumulate sharded"):
        raise ValueError(
            message(
                "zero",
                "the rule is inside accumulate(mode='sharded'), whose accumulators it would not divide",
                do="Write zero(accumulate(rule, steps), ...)",
            )
        )
    if mapped and is_surrounded_by("skip_nonfinite by device"):
        raise ValueError(
            message(
                "zero",
                "the rule is inside skip_nonfinite, where each device would decide by its own gradients",
                do="Write zero(skip_nonfinite(rule), axis_name=...), or give skip_nonfinite its axis_name",
            )
        )
    if is_surrounded_by("stored"):
        raise ValueError(
            message(
                "zero",
                "the rule is inside stored, which would see whole leaves on every device",
                do="Write zero(stored(rule, ...), ...)",
            )
        )
    if is_surrounded_by("zero"):
        raise ValueError(
            message(
                "zero", "the rule is inside another zero", allowed="one zero divides the state", do="Drop one"
            )
        )


# --- inside the step ----------------------------------------------------------------------------------


def _stored(leaves: list[Any], layout: Layout) -> list[Any]:
    return [cut.store(x) if cut else x for x, cut in zip(leaves, layout.state, strict=True)]


def _loaded(leaves: list[Any], layout: Layout) -> list[Any]:
    return [
        cut.load(x, shape) if cut else x
        for x, cut, shape in zip(leaves, layout.state, layout.shapes, strict=True)
    ]


class _Placer:
    """Constrains each leaf of a tree to its spec."""

    def __init__(self, mesh: Any, explicit: bool):
        # among Explicit axes the step runs under `auto_axes`, which has a mesh of its own
        self._mesh = jax.sharding.get_abstract_mesh() if explicit else mesh
        self._idle = isinstance(mesh, AbstractMesh)

    def __call__(self, tree: Any, specs: Sequence[PartitionSpec]) -> Any:
        if self._idle:
            return tree
        leaves, treedef = jax.tree.flatten(tree)
        return treedef.unflatten(
            [
                jax.lax.with_sharding_constraint(x, NamedSharding(self._mesh, spec))
                for x, spec in zip(leaves, specs, strict=True)
            ]
        )


def _reduced(updates: Updates, layout: Layout) -> Updates:
    """Gradients in their shares where Explicit types allow it: sums that are still owed are done here."""
    leaves, treedef = jax.tree.flatten(updates)
    moved = []
    for x, cut, whole, share in zip(
        leaves, layout.params, layout.param_specs, layout.share_specs, strict=True
    ):
        spec = whole if cut is None or cut.dim is None or cut.waste else share
        moved.append(reshard(x, NamedSharding(layout.mesh, spec)))
    return treedef.unflatten(moved)


def _arrays_and_rest(extra: dict[str, Any]) -> tuple[list[Any], Callable[[list[Any]], dict[str, Any]]]:
    """The arrays among extra arguments, and how to put others in their place."""
    leaves, treedef = jax.tree.flatten(extra)
    places = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array)]

    def rest(arrays: list[Any]) -> dict[str, Any]:
        filled = list(leaves)
        for i, x in zip(places, arrays, strict=True):
            filled[i] = x
        return treedef.unflatten(filled)

    return [leaves[i] for i in places], rest
