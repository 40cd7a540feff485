"""Which spec each leaf of a rule's state has, found without knowing the rule.

In this order: a spec that the user gives; the type that the leaf has when `init` is evaluated with
Explicit mesh axes; the parameter on the leaf's path, by shape. A leaf of which none of these tells
where it goes, and which is too large to be everywhere, is an error.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from .._encoded import Encoded, is_encoded
from .._errors import Problems
from .._owners import Owners
from .._partition import entry, is_even, normal_spec, respelled, shards_of
from .._paths import first_match, leaf_paths, listed
from .._types import Params, State
from ..matrix.fields import field_specs

SMALL = 2**16  # bytes: what is smaller is not worth a collective

Shape = tuple[int, ...]
Path = tuple[Any, ...]
Init = Callable[[Params], State]


class Followed(NamedTuple):
    """What is known of a state leaf."""

    spec: PartitionSpec
    param: int | None  # the parameter whose shape it has, in the order of `jax.tree.leaves`
    reason: str
    owner: int | None = None  # the parameter on its path
    derived: bool = False  # has some of a parameter's dimensions, or its type says so


def infer_specs(
    who: str,
    init: Init,
    state: State,
    params: Params,
    specs: Sequence[PartitionSpec],
    mesh: Any,
    given: Mapping[str, PartitionSpec] | None = None,
    *,
    divided: bool = False,
) -> list[Followed]:
    """What is known of each leaf of the state that `init` gives.

    Args:
      who: for errors.
      init: a rule's.
      state: a tree of shapes and dtypes, what `init` gives.
      params: a tree of shapes and dtypes.
      specs: the spec of each parameter.
      mesh: the mesh, or None when there is none.
      given: glob over state paths -> spec.
      divided: is the state to be divided even where no parameter is?

    Raises:
      ValueError: a glob matches no leaf, a given spec does not fit, or a large leaf follows nothing.
    """
    leaves, treedef = jax.tree.flatten(params)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]
    typed = functools.cache(lambda: _typed_specs(init, treedef, shapes, specs, mesh))
    keys = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    names, paths = leaf_paths(params), [path for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]]
    owners = Owners(keys)
    probe = _Probe(init, treedef, shapes)
    divided |= any(respelled(spec, x.ndim) != PartitionSpec() for spec, x in zip(specs, shapes, strict=True))
    problems, found, used = Problems(who), [], set()
    scales, declared = scales_in(state), field_specs(state)
    for index, (name, leaf) in enumerate(zip(leaf_paths(state), jax.tree.leaves(state), strict=True)):
        mine = owners.of(paths[index])
        follows = next((i for i in mine if shapes[i].shape == leaf.shape), None)
        glob = first_match(list(given or {}), name)
        if given and glob is not None:
            used.add(glob)
            _check_given(problems, name, leaf.shape, given[glob], mesh)
            found.append(Followed(respelled(given[glob], leaf.ndim), follows, f"given for {glob!r}"))
        elif index in scales:
            codes, node = scales[index]
            _, spec = node.format.spec(node.codes.shape, found[codes].spec, mesh)
            found.append(
                Followed(respelled(spec, leaf.ndim), None, "like the codes that it scales", derived=True)
            )
        elif index in declared:
            found.append(Followed(respelled(declared[index], leaf.ndim), None, "an array for each matrix"))
        elif leaf.size <= 1:
            found.append(Followed(PartitionSpec(), follows, "one element"))
        elif follows is not None:
            spec = respelled(specs[follows], leaf.ndim)
            found.append(Followed(spec, follows, f"shaped like {names[follows] or 'it'}"))
        elif (types := typed()) is not None and types[index] != PartitionSpec():
            found.append(Followed(types[index], None, "typed so by init", derived=True))
        elif (derived := _derived(mine, index, leaf, names, shapes, specs, probe)) is not None:
            found.append(derived)
        elif not divided or leaf.size * leaf.dtype.itemsize < SMALL:
            found.append(Followed(PartitionSpec(), None, "follows no parameter, and is small"))
        else:
            problems.add(
                f"cannot tell how a state leaf of shape {tuple(leaf.shape)} follows the parameters",
                at=name,
                allowed="leaves shaped like their parameter, or like it with dimensions left out or added",
                do=f"Pass specs={{{name!r}: PartitionSpec(...)}}",
            )
            found.append(Followed(PartitionSpec(), None, "unknown"))
    for glob in (given or {}).keys() - used:
        problems.add(
            f"specs names {glob!r}, which matches no leaf of the state",
            allowed=f"the paths are {listed(leaf_paths(state))}",
        )
    problems.raise_if_any(ValueError)
    return [
        f._replace(owner=owners.first(path) if f.param is None else f.param)
        for f, path in zip(found, paths, strict=True)
    ]


def _check_given(problems: Problems, name: str, shape: Shape, spec: PartitionSpec, mesh: Any) -> None:
    if len(spec) > len(shape):
        problems.add(f"{spec} is too long for shape {shape}", at=name)
        return
    for dim, size in enumerate(shape):
        for axis in entry(spec, dim):
            if mesh is None or axis not in mesh.shape:
                problems.add(f"{spec} names an axis that the mesh lacks, got {axis!r}", at=name)
                return
        parts = shards_of(spec, dim, mesh)
        if size % parts:
            problems.add(
                f"{spec} divides dimension {dim} of shape {shape} by {parts}", at=name, allowed="whole parts"
            )


# --- by type ------------------------------------------------------------------------------------------


def _typed_specs(
    init: Init, treedef: Any, shapes: list[Any], specs: Sequence[PartitionSpec], mesh: Any
) -> list[PartitionSpec] | None:
    """The specs in the types of the state when `init` is evaluated with Explicit axes.

    None when that cannot be done: some rules use operations that have no rule for types.
    """
    if mesh is None:
        return None
    sizes, names = tuple(mesh.shape.values()), tuple(mesh.shape)
    explicit = AbstractMesh(sizes, names, axis_types=(AxisType.Explicit,) * len(names))
    placed = []
    for x, spec in zip(shapes, specs, strict=True):
        even = is_even(spec, x.shape, mesh)  # a type cannot say that parts are uneven
        sharding = NamedSharding(explicit, spec if even else PartitionSpec())
        placed.append(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding))
    try:
        with jax.sharding.use_abstract_mesh(explicit):
            state = jax.eval_shape(init, treedef.unflatten(placed))
    except Exception:  # what JAX raises for an untyped operation has no common class
        return None
    return [respelled(getattr(x.sharding, "spec", PartitionSpec()), x.ndim) for x in jax.tree.leaves(state)]


def scales_in(state: State) -> dict[int, tuple[int, Encoded]]:
    """Of encoded arrays: index of the scales among the leaves -> index of the codes, and the array."""
    found, index = {}, 0
    for node in jax.tree.leaves(state, is_leaf=is_encoded):
        leaves = len(jax.tree.leaves(node))
        if is_encoded(node) and leaves == 2:
            found[index + 1] = (index, node)
        index += leaves
    return found


# --- by path and shape --------------------------------------------------------------------------------


def _derived(
    mine: list[int],
    index: int,
    leaf: Any,
    names: list[str],
    shapes: list[Any],
    specs: Sequence[PartitionSpec],
    probe: "_Probe",
) -> Followed | None:
    """A leaf whose dimensions are some of a parameter's, or a parameter's and more."""
    for i in mine:
        if not shapes[i].shape:
            continue
        ways = list(dimension_maps(shapes[i].shape, leaf.shape))
        if not ways:
            continue
        found = {_mapped_spec(way, specs[i]) for way in ways}
        if len(found) > 1:  # two dimensions of equal length: evaluate where they differ
            way = probe.dimension_map(i, index, len(leaf.shape))
            found = {_mapped_spec(way if way in ways else ways[0], specs[i])}
        reason = f"dimensions of {names[i] or 'the parameter'}"
        return Followed(found.pop(), None, reason, derived=True)
    return None


DimensionMap = tuple[int | None, ...]  # for each dimension of the leaf, the parameter's, or None


def dimension_maps(param: Shape, leaf: Shape) -> Iterator[DimensionMap]:
    """The ways in which a leaf's dimensions can be a parameter's.

    >>> list(dimension_maps((4, 8), (4, 1))), list(dimension_maps((4, 8), (8,)))
    ([(0, None)], [(1,)])
    >>> list(dimension_maps((4, 4), (4,))), list(dimension_maps((4, 8), (3, 4, 8)))
    ([(0,), (1,)], [(None, 0, 1)])
    """
    if len(leaf) == len(param):
        if all(n in (1, size) for n, size in zip(leaf, param, strict=True)):  # sums that keep dimensions
            yield tuple(d if n == size else None for d, (n, size) in enumerate(zip(leaf, param, strict=True)))
    elif len(leaf) < len(param):
        for kept in itertools.combinations(range(len(param)), len(leaf)):
            if tuple(param[d] for d in kept) == leaf:
                yield kept
    else:
        for places in itertools.combinations(range(len(leaf)), len(param)):
            if tuple(leaf[d] for d in places) == param:
                yield tuple(places.index(d) if d in places else None for d in range(len(leaf)))


def _mapped_spec(way: DimensionMap, spec: PartitionSpec) -> PartitionSpec:
    return normal_spec([() if d is None else entry(spec, d) for d in way])


class _Probe:
    """Evaluates `init` on parameters of which no two dimensions have one length."""

    def __init__(self, init: Init, treedef: Any, shapes: list[Any]):
        self._init, self._treedef, self._shapes = init, treedef, shapes
        self._state: list[Any] | None = None

    def dimension_map(self, param: int, leaf: int, rank: int) -> DimensionMap | None:
        if self._state is None:
            probes = [jax.ShapeDtypeStruct(_distinct(x.shape), x.dtype) for x in self._shapes]
            self._state = jax.tree.leaves(jax.eval_shape(self._init, self._treedef.unflatten(probes)))
        if leaf >= len(self._state) or len(self._state[leaf].shape) != rank:
            return None
        ways = list(dimension_maps(_distinct(self._shapes[param].shape), self._state[leaf].shape))
        return ways[0] if len(ways) == 1 else None


def _distinct(shape: Shape) -> Shape:
    """`shape` with equal lengths told apart, in the order in which a stable sort has them.

    >>> _distinct((4, 4, 5))
    (4, 5, 6)
    """
    lengths, last = list(shape), 0
    for dim in sorted(range(len(shape)), key=lambda d: shape[d]):
        last = lengths[dim] = max(shape[dim], last + 1)
    return tuple(lengths)
