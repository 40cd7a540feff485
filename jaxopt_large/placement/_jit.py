"""`zero` under jit: shardings of the state say it all, XLA derives the collectives."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from .._axes import is_surrounded_by, surrounded_by
from .._compat import auto_axes, reshard
from .._errors import Problems, message
from .._paths import check_glob, leaf_paths, matches
from .._types import AnyRule, Params, Rule, State, Updates, make_rule
from ._cuts import Cut, choose_cut, cut_spec, entry, normal_spec, respelled, shards_of
from ._known import known_sharding
from ._layout import Layout, ZeroState, sharding_of, spec_of, without_aliases
from ._specs import Followed, infer_specs


class Options(NamedTuple):
    """What the user says of leaves."""

    layers: str | None = None  # glob of parameters whose first dimension runs over layers
    min_bytes: int = 0  # smaller parameters stay as they are
    specs: Mapping[str, PartitionSpec] | None = None  # glob over state paths -> spec


class Decision(NamedTuple):
    """How one parameter is divided, and why."""

    cut: Cut | None
    spec: PartitionSpec  # of the share; the parameter's own where it is flattened
    reason: str


def zero_in_jit(rule: AnyRule, mesh: Any, axes: tuple[str, ...], options: Options) -> Rule:
    rule = optax.with_extra_args_support(rule)
    explicit = AxisType.Explicit in mesh.axis_types

    def init(params: Params) -> ZeroState:
        check_order()
        with surrounded_by("zero"):
            layout, abstract = _plan(rule, params, mesh, axes, options)

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
        layout = state.layout
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
            with surrounded_by("zero"):
                changes, new = rule.update(gradients, logical, values, **rest(arrays))
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


def decide(
    path: str, leaf: Any, spec: PartitionSpec, mesh: Any, axes: tuple[str, ...], options: Options
) -> Decision:
    """How a parameter of a given shape and spec is divided over `axes`."""
    taken = {name for dim in range(leaf.ndim) for name in entry(spec, dim)}
    along = " x ".join(axes)
    if taken & set(axes):
        return Decision(None, spec, f"divided over {along} already, with the parameter")
    size = leaf.size * leaf.dtype.itemsize
    if size < options.min_bytes or leaf.ndim == 0:
        return Decision(None, spec, f"{size} bytes, under {options.min_bytes}: not worth a collective")
    layers = options.layers is not None and matches(options.layers, path)
    shares = math.prod(mesh.shape[a] for a in axes)
    cut = choose_cut(leaf.shape, shares, spec, mesh, layers=layers)
    if cut is None:
        return Decision(None, spec, "no elements")
    if cut.dim is None:
        return Decision(cut, spec, f"flattened: no dimension divides by {shares} with 1 % of padding or less")
    minor = "".join(f", minor to {name}" for name in entry(spec, cut.dim))
    padded = f", padded from {cut.size} to {cut.padded}" if cut.waste else ""
    return Decision(cut, cut_spec(spec, cut, axes, leaf.ndim), f"dimension {cut.dim}{minor}{padded}")


def check_order() -> None:
    """Raises inside a wrapper inside which `zero` cannot do its work."""
    if is_surrounded_by("accumulate sharded"):
        raise ValueError(
            message(
                "zero",
                "the rule is inside accumulate(mode='sharded'), whose accumulators it would not divide",
                do="Write zero(accumulate(rule, steps), ...)",
            )
        )
    if is_surrounded_by("zero"):
        raise ValueError(
            message(
                "zero", "the rule is inside another zero", allowed="one zero divides the state", do="Drop one"
            )
        )


def describe_mesh(mesh: Any) -> str:
    """ "(data=4, model=2)", or what stands in its place."""
    if mesh is None:
        return "a mapped axis"
    return "(" + ", ".join(f"{name}={size}" for name, size in mesh.shape.items()) + ")"


# --- the plan -----------------------------------------------------------------------------------------


def _plan(
    rule: Rule, params: Params, mesh: Any, axes: tuple[str, ...], options: Options
) -> tuple[Layout, State]:
    """The layout for `params`, and the inner state's shapes."""
    leaves = jax.tree.leaves(params)
    problems = Problems("zero")
    check_glob(problems, "layers", options.layers, leaf_paths(params), "parameter")
    problems.raise_if_any()
    specs = param_specs("zero", params, mesh)
    decisions = [
        decide(path, x, spec, mesh, axes, options)
        for path, x, spec in zip(leaf_paths(params), leaves, specs, strict=True)
    ]
    abstract, followed = infer_specs(
        "zero", rule.init, params, [d.spec for d in decisions], mesh, options.specs
    )
    state = [
        _stored_as(f, x, decisions, mesh, axes, options)
        for f, x in zip(followed, jax.tree.leaves(abstract), strict=True)
    ]
    layout = Layout(
        axes=axes,
        shares=math.prod(mesh.shape[a] for a in axes),
        mesh=mesh,
        params=tuple(d.cut for d in decisions),
        state=tuple(cut for cut, _ in state),
        shapes=tuple(x.shape for x in jax.tree.leaves(abstract)),
        owners=tuple(f.owner for f in followed),
        param_specs=tuple(specs),
        share_specs=tuple(d.spec for d in decisions),
        state_specs=tuple(spec for _, spec in state),
        reasons=tuple(d.reason for d in decisions),
    )
    return layout, abstract


def _is_left_whole(followed: Followed, leaf: Any, axes: tuple[str, ...], options: Options) -> bool:
    """Is it large, and not divided with its parameter? Sums over the dimension that is cut are not."""
    names = {name for dim in range(leaf.ndim) for name in entry(followed.spec, dim)}
    size = leaf.size * leaf.dtype.itemsize
    return followed.derived and leaf.size > 1 and size >= options.min_bytes and not names & set(axes)


def _stored_as(
    followed: Followed,
    leaf: Any,
    decisions: list[Decision],
    mesh: Any,
    axes: tuple[str, ...],
    options: Options,
) -> tuple[Cut | None, PartitionSpec]:
    """How a state leaf is stored: like its parameter's share, or by its own spec, padded to fit it."""
    if followed.param is not None and leaf.size > 1:
        cut = decisions[followed.param].cut
        if cut is not None and cut.dim is None:
            return cut, cut_spec(followed.spec, cut, axes, leaf.ndim)
    elif _is_left_whole(followed, leaf, axes, options):
        cut = choose_cut(leaf.shape, math.prod(mesh.shape[a] for a in axes), followed.spec, mesh)
        if cut is not None:
            return cut if cut.waste or cut.dim is None else None, cut_spec(
                followed.spec, cut, axes, leaf.ndim
            )
    parts = [entry(followed.spec, dim) for dim in range(leaf.ndim)]
    uneven = [d for d in range(leaf.ndim) if leaf.shape[d] % shards_of(followed.spec, d, mesh)]
    for dim in uneven[1:]:  # several only where a rule multiplies dimensions: one is enough
        parts[dim] = ()
    if not uneven:
        return None, followed.spec
    unit = shards_of(followed.spec, uneven[0], mesh)
    size = leaf.shape[uneven[0]]
    return Cut(uneven[0], size, -(-size // unit) * unit), normal_spec(parts)


def param_specs(who: str, params: Params, mesh: Any) -> list[PartitionSpec]:
    """Each parameter's spec on `mesh`; what is not known to be divided is replicated.

    Raises:
      ValueError: a parameter lives on another mesh.
    """
    specs = []
    for i, leaf in enumerate(jax.tree.leaves(params)):
        sharding = known_sharding(i, params) or sharding_of(leaf)
        if isinstance(sharding, NamedSharding) and not _same_devices(sharding.mesh, mesh):
            raise ValueError(
                message(
                    who,
                    f"a parameter lives on another mesh, {describe_mesh(sharding.mesh)}",
                    at=leaf_paths(params)[i],
                    allowed=f"this rule's mesh is {describe_mesh(mesh)}",
                    do="Build both with one mesh",
                )
            )
        if sharding is None and AxisType.Explicit in mesh.axis_types:
            typed = getattr(jax.typeof(leaf), "sharding", None)  # a tracer's type tells
            specs.append(respelled(getattr(typed, "spec", None), leaf.ndim))
        else:
            specs.append(respelled(spec_of(sharding), leaf.ndim))
    return specs


def _same_devices(one: Any, other: Any) -> bool:
    if one.shape != other.shape:
        return False
    concrete = not isinstance(one, AbstractMesh) and not isinstance(other, AbstractMesh)
    return not concrete or list(one.devices.flat) == list(other.devices.flat)


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
