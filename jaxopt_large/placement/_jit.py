"""`zero` under jit: shardings of the state say it all, XLA derives the collectives."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from .._compat import auto_axes, reshard
from .._errors import message
from .._gradients import in_order
from .._known_shardings import known_shardings
from .._order import Wrapper, check_order, inside, is_planned, shares_wanted
from .._states import check_state, explained
from .._static import ANYTHING, is_placeholder
from .._types import AnyRule, Params, Rule, Updates, make_rule
from ._cuts import Cut
from ._init_in_place import init_in_place, traced_init
from ._layout import Layout, check_updates
from ._layout_jit import Divided, Options, describe_mesh, divided, plan_layout
from ._zero_state import ZeroState


def zero_in_jit(rule: AnyRule, mesh: Any, axes: tuple[str, ...], options: Options) -> Rule:
    rule = optax.with_extra_args_support(rule)
    explicit = AxisType.Explicit in mesh.axis_types

    def init(params: Params) -> ZeroState:
        check_order(Wrapper.ZERO)
        if is_placeholder(params):
            return ZeroState(rule.init(params), ANYTHING)
        division = divided(params, mesh, axes, options)
        with inside(Wrapper.ZERO), known_shardings(_of_shares(params, division, mesh)):
            closed, abstract = traced_init(rule.init, params)
            layout = plan_layout(rule, abstract, params, mesh, axes, options, division)
            like = list(zip(layout.state, layout.state_specs, strict=True))
            compiled = functools.partial(_compiled, layout, explicit)
            leaves = init_in_place(closed, jax.tree.leaves(params), like, compiled)
        return ZeroState(jax.tree.structure(abstract).unflatten(leaves), layout)

    def update(
        updates: Updates, state: ZeroState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ZeroState]:
        check_state("zero", ZeroState, state)
        layout = state.layout
        gradients = in_order("zero", updates, params, len(layout.params))
        check_updates(layout, gradients, params)
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

        def run(updates: list[Any], inner: list[Any], params: Params | None, arrays: list[Any]) -> Any:
            place = _Placer(mesh, explicit)
            own = gradients.treedef.unflatten(place(updates, layout.share_specs))
            values = None
            if params is not None:
                placed = place(gradients.treedef.flatten_up_to(params), layout.share_specs)
                values = gradients.treedef.unflatten(placed)
            with explained("zero", rule.init, state.inner, own, values):
                logical = treedef.unflatten(_unpadded(inner, layout))
            # compiled apart from what surrounds it, the rule rounds alike on every mesh
            own, values = _apart(own), _apart(values)
            with inside(Wrapper.ZERO), explained("zero", rule.init, logical, own, values):
                made, new = rule.update(own, logical, values, **rest(arrays))
            changes = _apart(gradients.changes(made, values))
            changes = place(changes, layout.share_specs)
            if not shares_wanted():
                changes = place(changes, layout.param_specs)
            leaves = place(_padded(jax.tree.leaves(new), layout.state), layout.state_specs)
            return changes, leaves

        leaves = gradients.leaves
        if explicit and not isinstance(mesh, AbstractMesh):
            leaves = _reduced(leaves, layout)
            there = [g is not None or params is not None for g in leaves]
            out_specs = [s if t else None for s, t in zip(layout.param_specs, there, strict=True)]
            run = auto_axes(run, mesh, (out_specs, list(layout.state_specs)))
        changes, new = run(leaves, inner, params, arrays)
        return gradients.treedef.unflatten(changes), ZeroState(treedef.unflatten(new), layout)

    return make_rule(init, update)


def _apart(tree: Any) -> Any:
    """Arrays, not fused with what makes them; each by itself: not all must be there at once."""
    return jax.tree.map(jax.lax.optimization_barrier, tree)


def _of_shares(params: Params, division: Divided, mesh: Any) -> dict[Any, NamedSharding]:
    """Key path -> sharding, as the rule will see each parameter."""
    keys = [key for key, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    return {key: NamedSharding(mesh, d.spec) for key, d in zip(keys, division.divisions, strict=True)}


def _compiled(
    layout: Layout, explicit: bool, run: Callable[..., list[Any]], numbers: list[int]
) -> Callable[..., list[Any]]:
    """A function that makes leaves of the state, given their numbers, in their places."""
    specs = [layout.state_specs[n] for n in numbers]

    def shares(*arrays: Any) -> list[Any]:
        return _padded(run(*arrays), [layout.state[n] for n in numbers])

    if isinstance(layout.mesh, AbstractMesh):
        return shares
    make = auto_axes(shares, layout.mesh, specs) if explicit else shares
    return jax.jit(make, out_shardings=[NamedSharding(layout.mesh, spec) for spec in specs])


# --- inside the step ----------------------------------------------------------------------------------


def _padded(leaves: list[Any], cuts: Sequence[Cut | None]) -> list[Any]:
    return [cut.pad(x) if cut else x for x, cut in zip(leaves, cuts, strict=True)]


def _unpadded(leaves: list[Any], layout: Layout) -> list[Any]:
    return [
        cut.unpad(x, shape) if cut else x
        for x, cut, shape in zip(leaves, layout.state, layout.shapes, strict=True)
    ]


class _Placer:
    """Constrains each leaf to its spec; None stays."""

    def __init__(self, mesh: Any, explicit: bool):
        # among Explicit axes the step runs under `auto_axes`, which has a mesh of its own
        self._mesh = jax.sharding.get_abstract_mesh() if explicit else mesh
        self._idle = isinstance(mesh, AbstractMesh) and not is_planned()

    def __call__(self, leaves: list[Any], specs: Sequence[PartitionSpec]) -> list[Any]:
        if self._idle:
            return leaves
        there = [n for n, x in enumerate(leaves) if x is not None]
        shardings = [NamedSharding(self._mesh, specs[n]) for n in there]
        placed = jax.lax.with_sharding_constraint([leaves[n] for n in there], shardings)
        found = iter(placed)
        return [x if x is None else next(found) for x in leaves]


def _reduced(leaves: list[Any], layout: Layout) -> list[Any]:
    """Gradients in their shares where Explicit types allow it: sums that are still owed are done here."""
    moved = []
    for x, cut, whole, share in zip(
        leaves, layout.params, layout.param_specs, layout.share_specs, strict=True
    ):
        spec = whole if cut is None or cut.dim is None or cut.waste else share
        moved.append(x if x is None else reshard(x, NamedSharding(layout.mesh, spec)))
    return moved


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
