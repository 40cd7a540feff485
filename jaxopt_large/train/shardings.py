"""Where a run's parameters are divided, and what its model is told of that."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jaxtyping import Array

from .._compat import constrained_on
from .._encoded import BLOCK
from .._errors import Problems
from .._partition import devices_along, entries, names_in, normal_spec
from .._paths import check_glob, first_match, leaf_paths, map_with_path, matches, nearest
from .._types import Params
from ..config import Config
from ..models import Model, Place
from ._errors import RunError

_SMALL = 2**16  # bytes of a matrix that may stay whole
_SHORTEST = 8  # rows of a share: with fewer, sending one costs more than it holds
_Names = list[tuple[str, ...]]  # the mesh axes of each dimension


def param_shardings(config: Config, params: Params, mesh: Any) -> Any:
    """Each parameter's sharding: the spec of the first glob in `placement.params`, and `placement.fsdp`.

    Raises:
      RunError: a glob matches no parameter, or a spec does not divide those that it matches.
    """
    placement = config.placement
    specs = _tensor_specs(placement.params, params, mesh)
    problems = Problems("placement")
    check_glob(problems, "layers", placement.layers, leaf_paths(params), "parameter")

    def sharding(path: str, leaf: Any) -> NamedSharding:
        parts = specs[path]
        if placement.fsdp is not None:
            stacked = placement.layers is not None and matches(placement.layers, path)
            parts = with_fsdp(parts, leaf.shape, placement.fsdp, mesh, layers=stacked)
            whole = not any(placement.fsdp in names for names in parts)
            if whole and leaf.ndim - stacked > 1 and leaf.size * leaf.dtype.itemsize >= _SMALL:
                by = _told((placement.fsdp,), mesh)
                wrong = f"fsdp finds no dimension of {tuple(leaf.shape)} that {by} divides too"
                problems.add(wrong, at=path, do="Change the model's sizes, or leave fsdp out")
        return NamedSharding(mesh, normal_spec(parts))

    found = map_with_path(sharding, params)
    problems.raise_if_any(RunError)
    return found


def placed_params(config: Config, model: Model, mesh: Any) -> Params:
    """The shapes of a model's parameters, with their shardings."""
    params = model.abstract()
    shardings = param_shardings(config, params, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, shardings)


def with_fsdp(parts: _Names, shape: tuple[int, ...], axis: str, mesh: Any, *, layers: bool) -> _Names:
    """The mesh axes of a parameter's dimensions, with one more that divides the whole of it.

    Preferred, in this order: a dimension whose shares are whole blocks, if it is the last; one of which a
    share has 8 or more; one that nothing divides yet; the longest. Never that of the layers of a scan. What
    has no such dimension, vectors, and what the axis divides already stay as they are.
    """
    first = 1 if layers else 0
    if len(shape) - first < 2 or any(axis in names for names in parts):
        return parts
    ranked = []
    for dim in range(first, len(shape)):
        shares = devices_along((*parts[dim], axis), mesh)
        if shape[dim] % shares:
            continue
        share = shape[dim] // shares
        cuts_blocks = dim == len(shape) - 1 and shape[dim] > BLOCK and share % BLOCK != 0
        ranked.append(((cuts_blocks, share < _SHORTEST, bool(parts[dim]), -shape[dim]), dim))
    if not ranked:
        return parts
    best = min(ranked)[1]
    return [(*names, axis) if dim == best else names for dim, names in enumerate(parts)]


def _tensor_specs(given: Mapping[str, list[Any]], params: Params, mesh: Any) -> dict[str, _Names]:
    """For each parameter's path, the mesh axes of its dimensions: those of the first glob."""
    problems, unused, found = Problems("placement.params"), set(given), {}
    for path, leaf in zip(leaf_paths(params), jax.tree.leaves(params), strict=True):
        glob, shape = first_match(list(given), path), tuple(leaf.shape)
        spec = [] if glob is None else given[glob]
        unused.discard(glob)
        cuts = [(n, names_in(part)) for n, part in zip(shape, spec, strict=False)]
        uneven = [f"{n} by {_told(names, mesh)}" for n, names in cuts if n % devices_along(names, mesh)]
        if len(spec) > len(shape):
            problems.add(f"{glob!r} divides more dimensions than there are, got {spec} for {shape}", at=path)
        elif uneven:
            problems.add(f"{glob!r} does not divide evenly, got {', '.join(uneven)}", at=path)
        found[path] = [names for _, names in cuts] + [()] * (len(shape) - len(cuts))
    for glob in unused:
        near = f"the nearest are {nearest(glob, leaf_paths(params))}"
        problems.add(f"{glob!r} matches no parameter that no glob before it does", allowed=near)
    problems.raise_if_any(RunError)
    return found


def _told(names: tuple[str, ...], mesh: Any) -> str:
    return " x ".join(f"{name}={mesh.shape[name]}" for name in names)


class OnMesh(Place):
    """What a model is told of its arrays on a mesh with Auto axes.

    Batches are divided over the data axis; heads, hidden layers, the vocabulary, and positions between
    layers over the axes that divide parameters otherwise. A parameter is used undivided by the data axis.

    Args:
      mesh: the mesh.
      data: axes that divide batches; none where each device's part of the mesh is on its own.
      params: shapes with shardings.
      fused: can attention be one kernel there?
    """

    def __init__(
        self, mesh: Mesh | AbstractMesh, data: tuple[str, ...], params: Params, *, fused: bool = False
    ):
        self._mesh, self._data, self.fused = mesh, data, fused
        leaves = zip(leaf_paths(params), jax.tree.leaves(params), strict=True)
        self._specs = {path: entries(x.sharding.spec, x.ndim) for path, x in leaves}
        used = {name for spec in self._specs.values() for names in spec for name in names}
        self._tensor = tuple(name for name in mesh.axis_names if name in used - {*data})

    def activation(self, x: Array, *dimensions: str | None) -> Array:
        """In its place, so far as its dimensions divide."""
        parts = [self._axes_of(name, size) for name, size in zip(dimensions, x.shape, strict=True)]
        return self._constrained(x, parts)

    def weight(self, x: Array, path: str) -> Array:
        """Gathered over what divides batches."""
        whole = [tuple(name for name in names if name in self._tensor) for names in self._specs[path]]
        return self._constrained(x, whole[len(whole) - x.ndim :])  # of one layer, without that dimension

    def _axes_of(self, name: str | None, size: int) -> tuple[str, ...]:
        axes = () if name is None else self._data if name == "batch" else self._tensor
        return axes if size % devices_along(axes, self._mesh) == 0 else ()

    def _constrained(self, x: Array, parts: list[tuple[str, ...]]) -> Array:
        return constrained_on(self._mesh, x, normal_spec(parts))
