"""Where each parameter and each leaf of the state goes, under jit: decided before anything is there."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from .._encoded import BLOCK
from .._errors import Problems, message
from .._known_shardings import known_shardings_of
from .._numerics import accumulation_dtype
from .._partition import devices_along, entry, normal_spec, respelled, shards_of, spec_of
from .._paths import check_glob, leaf_paths, matches
from .._types import Params, Rule, State
from ._cuts import Cut, choose_cut, cut_spec
from ._layout import Layout, sharding_of
from ._specs import Followed, infer_specs

_LARGE = 2**20  # elements of an array for which parts of blocks are worth a word


class Options(NamedTuple):
    """What the user says of leaves."""

    layers: str | None = None  # glob of parameters whose first dimension runs over layers
    min_bytes: int = 0  # smaller parameters stay as they are
    specs: Mapping[str, PartitionSpec] | None = None  # glob over state paths -> spec


class Division(NamedTuple):
    """How one parameter is divided, and why."""

    cut: Cut | None
    spec: PartitionSpec  # of the share; the parameter's own where it is flattened
    reason: str


def division_of(
    path: str, leaf: Any, spec: PartitionSpec, mesh: Any, axes: tuple[str, ...], options: Options
) -> Division:
    """How a parameter of a given shape and spec is divided over `axes`."""
    left = axes_left(axes, spec, leaf.ndim)
    if not left:
        told = f"divided over {' x '.join(axes)} already, with the parameter"
        return Division(None, spec, told + _split_blocks(leaf.shape, spec, mesh))
    size = leaf.size * accumulation_dtype(leaf.dtype).itemsize  # what a field of the state takes
    if size < options.min_bytes or leaf.ndim == 0:
        return Division(None, spec, f"{size} bytes, under {options.min_bytes}: not worth a collective")
    layers = options.layers is not None and matches(options.layers, path)
    shares = devices_along(left, mesh)
    cut = choose_cut(leaf.shape, shares, spec, mesh, layers=layers)
    if cut is None:
        return Division(None, spec, "no elements")
    if cut.dim is None:
        return Division(cut, spec, f"flattened: no dimension divides by {shares} with 1 % of padding or less")
    minor = "".join(f", minor to {name}" for name in entry(spec, cut.dim))
    padded = f", padded from {cut.size} to {cut.padded}" if cut.waste else ""
    share = cut_spec(spec, cut, left, leaf.ndim)
    told = f"dimension {cut.dim}{minor}{padded}{_split_blocks(leaf.shape, share, mesh)}"
    return Division(cut, share, told)


def _split_blocks(shape: tuple[int, ...], spec: PartitionSpec, mesh: Any) -> str:
    """What is said of a large array whose shares are no whole blocks, and what to do about it."""
    last = len(shape) - 1
    names, parts = entry(spec, last), shards_of(spec, last, mesh)
    share = -(-shape[last] // parts)
    if parts == 1 or share % BLOCK == 0 or math.prod(shape) < _LARGE:
        return ""
    more = devices_along(names[-1:], mesh)
    others = [d for d in range(last) if shape[d] % (shards_of(spec, d, mesh) * more) == 0]
    best = max(others, key=lambda d: shape[d], default=None)
    do = "" if best is None else f"; divide dimension {best} over {names[-1]!r} in the place of {last}"
    return f", in shares of {share}: formats in blocks of {BLOCK} send parts of them{do}"


def axes_left(axes: tuple[str, ...], spec: PartitionSpec, rank: int) -> tuple[str, ...]:
    """Those of `axes` that divide no dimension yet."""
    taken = {name for dim in range(rank) for name in entry(spec, dim)}
    return tuple(name for name in axes if name not in taken)


# --- the plan ------------------------------------------------------------------------------------------


class Divided(NamedTuple):
    """Parameters, as they are and as their shares will be."""

    specs: list[PartitionSpec]
    divisions: list[Division]


def divided(params: Params, mesh: Any, axes: tuple[str, ...], options: Options) -> Divided:
    """How each parameter is divided.

    Raises:
      ValueError: a glob of the options matches nothing, or a parameter lives on another mesh.
    """
    problems = Problems("zero")
    check_glob(problems, "layers", options.layers, leaf_paths(params), "parameter")
    problems.raise_if_any()
    specs = param_specs("zero", params, mesh)
    leaves = zip(leaf_paths(params), jax.tree.leaves(params), specs, strict=True)
    return Divided(specs, [division_of(path, x, spec, mesh, axes, options) for path, x, spec in leaves])


def plan_layout(
    rule: Rule,
    abstract: State,
    params: Params,
    mesh: Any,
    axes: tuple[str, ...],
    options: Options,
    division: Divided,
) -> Layout:
    """The layout for `params` and the inner state, of which only the shapes are known."""
    leaves, (specs, divisions) = jax.tree.leaves(params), division
    followed = infer_specs(
        "zero", rule.init, abstract, params, [d.spec for d in divisions], mesh, options.specs, divided=True
    )
    state = [
        _state_cut(f, x, divisions, mesh, axes, options)
        for f, x in zip(followed, jax.tree.leaves(abstract), strict=True)
    ]
    return Layout(
        axes=axes,
        shares=devices_along(axes, mesh),
        mesh=mesh,
        params=tuple(d.cut for d in divisions),
        state=tuple(cut for cut, _ in state),
        param_shapes=tuple(tuple(x.shape) for x in leaves),
        shapes=tuple(x.shape for x in jax.tree.leaves(abstract)),
        owners=tuple(f.owner for f in followed),
        param_specs=tuple(specs),
        share_specs=tuple(d.spec for d in divisions),
        state_specs=tuple(spec for _, spec in state),
        reasons=tuple(d.reason for d in divisions),
    )


def _is_left_whole(followed: Followed, leaf: Any, axes: tuple[str, ...], options: Options) -> bool:
    """Is it large, and not divided with its parameter? Sums over the dimension that is cut are not."""
    size = leaf.size * leaf.dtype.itemsize
    left = axes_left(axes, followed.spec, leaf.ndim)
    return followed.derived and leaf.size > 1 and size >= options.min_bytes and left == axes


def _state_cut(
    followed: Followed,
    leaf: Any,
    divisions: list[Division],
    mesh: Any,
    axes: tuple[str, ...],
    options: Options,
) -> tuple[Cut | None, PartitionSpec]:
    """How a state leaf is kept: like its parameter's share, or by its own spec, padded to fit it."""
    if followed.param is not None and leaf.size > 1:
        cut = divisions[followed.param].cut
        if cut is not None and cut.dim is None:
            left = axes_left(axes, followed.spec, leaf.ndim)
            return cut, cut_spec(followed.spec, cut, left, leaf.ndim)
    elif _is_left_whole(followed, leaf, axes, options):
        cut = choose_cut(leaf.shape, devices_along(axes, mesh), followed.spec, mesh)
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
    for i, (leaf, known) in enumerate(zip(jax.tree.leaves(params), known_shardings_of(params), strict=True)):
        sharding = known or sharding_of(leaf)
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
    if one is other or one.shape != other.shape:
        return one is other
    concrete = not isinstance(one, AbstractMesh) and not isinstance(other, AbstractMesh)
    return not concrete or list(one.devices.flat) == list(other.devices.flat)


def checked_mesh(who: str, mesh: Any) -> Mesh | AbstractMesh:
    """An argument that is a mesh.

    Raises:
      TypeError: it is not.
    """
    if not isinstance(mesh, Mesh | AbstractMesh):
        wrong = f"mesh is not a mesh, got {mesh!r}"
        raise TypeError(message(who, wrong, allowed="jax.make_mesh(...) or an AbstractMesh"))
    return mesh


def describe_mesh(mesh: Any) -> str:
    """ "(data=4, model=2)", or what stands in its place."""
    if mesh is None:
        return "a mapped axis"
    return "(" + ", ".join(f"{name}={size}" for name, size in mesh.shape.items()) + ")"
