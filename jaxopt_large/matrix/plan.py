"""What a rule of matrices decides once, in `init`: how each leaf is read, and whose devices work on it."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import NamedSharding

from .._axes import window_of
from .._compat import explicit_sharding
from .._errors import Problems, message
from .._known_shardings import known_shardings_of
from .._partition import entries
from .._paths import leaf_paths
from .._static import ANYTHING, StaticNode, is_placeholder
from .._types import Params
from .roles import OTHER_LEAVES, Role, View, assigned, checked_roles


class MatrixLeaf(NamedTuple):
    """A leaf that is one matrix or several.

    Attributes:
      path: of the parameter.
      role: how it is read.
      shape: of the whole leaf.
      axes: for each dimension the mesh axes that divide it.
    """

    path: str
    role: Role
    shape: tuple[int, ...]
    axes: tuple[tuple[str, ...], ...]

    @property
    def matrices(self) -> int:
        """How many there are in it."""
        view = self.view
        return math.prod(self.shape) // (view.rows * view.columns)

    @property
    def view(self) -> View:
        """The leaf, read so."""
        return self.role.view(self.shape)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class MatrixPlan(StaticNode):
    """How leaves are read, and over which devices the work on them is divided.

    Attributes:
      leaves: those that the rule has.
      mesh: of the devices; None on one device, and inside mapped axes.
      owners: axes whose devices share the work.
      transposes: may rows and columns change places?
      flops: of the work on each leaf.
      fields: of the state that have an array for each matrix: the name, and the whole shape for each leaf.
    """

    leaves: tuple[MatrixLeaf, ...]
    mesh: Any
    owners: tuple[str, ...]
    transposes: bool = True
    flops: tuple[float, ...] = ()
    fields: tuple[tuple[str, tuple[tuple[int, ...], ...]], ...] = ()

    @functools.cached_property
    def of(self) -> dict[str, MatrixLeaf]:
        """By path."""
        return {leaf.path: leaf for leaf in self.leaves}


def has_plan(x: Any) -> bool:
    """Is it a state that holds one?"""
    return isinstance(x, tuple) and isinstance(getattr(x, "matrices", None), MatrixPlan)


@dataclasses.dataclass(frozen=True)
class Matrices:
    """Which leaves are matrices, and whose devices work on them, as users say it.

    Attributes:
      roles: glob -> role.
      other_leaves: a glob of leaves that are no matrices.
      owners: mesh axes, or mapped axes, whose devices share the work; None for all axes of the mesh.
    """

    roles: Mapping[str, Role]
    other_leaves: str = OTHER_LEAVES
    owners: tuple[str, ...] | None = None

    def assigned(self, who: str, params: Params) -> list[Role]:
        """The role of each leaf."""
        paths = leaf_paths(params)
        shapes = [_whole_shape(x, path) for path, x in jax.tree_util.tree_flatten_with_path(params)[0]]
        parts = any(map(_is_masked, jax.tree.leaves(params, is_leaf=_is_masked)))
        return assigned(who, self.roles, self.other_leaves, paths, shapes, parts=parts)

    def plan(self, who: str, params: Params) -> MatrixPlan:
        """How the leaves of a rule that takes nothing but matrices are worked on.

        Raises:
          ValueError: a leaf is no matrix, or is divided along axes that are no owners.
        """
        if is_placeholder(params):
            return ANYTHING
        paths, roles = leaf_paths(params), self.assigned(who, params)
        shardings = _shardings(params)
        mesh = next((s.mesh for s in shardings if s is not None), None)
        owners = _owners(who, self.owners, mesh)
        problems, leaves = Problems(who), []
        keyed = jax.tree_util.tree_flatten_with_path(params)[0]
        for path, role, (key, x), sharding in zip(paths, roles, keyed, shardings, strict=True):
            if role.is_other:
                problems.add(
                    f"a leaf is no matrix, got shape {tuple(x.shape)}",
                    at=path or "the root",
                    allowed=f"other leaves are {self.other_leaves!r}, vectors and scalars",
                    do=f"Use jl.{who.removeprefix('scale_by_')}, which gives them to another rule",
                )
                continue
            axes = tuple(entries(None if sharding is None else sharding.spec, x.ndim))
            foreign = {name for names in axes for name in names} - set(owners)
            if foreign:
                problems.add(
                    f"a leaf is divided over {', '.join(sorted(foreign))}, which owners leave out",
                    at=path,
                    allowed=f"owners are {owners!r}",
                    do="Name all axes that divide matrices, or none",
                )
            leaves.append(MatrixLeaf(path, role, _whole_shape(x, key), axes))
        problems.raise_if_any()
        return MatrixPlan(tuple(leaves), mesh, owners)


def checked_matrices(who: str, roles: Any, other_leaves: str, owners: Any) -> Matrices:
    """`Matrices` of arguments.

    Raises:
      TypeError: roles are no mapping of globs to roles.
      ValueError: a role has another grammar.
    """
    names = (owners,) if isinstance(owners, str) else owners
    return Matrices(checked_roles(who, roles), other_leaves, None if names is None else tuple(names))


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def _whole_shape(x: Any, key: Any) -> tuple[int, ...]:
    """Of a leaf, of which a mapped axis may have given a device a share."""
    window = window_of(key)
    return tuple(x.shape if window is None else window.whole)


def _shardings(params: Params) -> list[NamedSharding | None]:
    """Where parameters are, as far as it is known."""
    found: list[NamedSharding | None] = []
    for x, known in zip(jax.tree.leaves(params), known_shardings_of(params), strict=True):
        own = getattr(x, "sharding", None)  # of a concrete array; that of a tracer is in its type
        sharding = known or (own if isinstance(own, NamedSharding) else None) or explicit_sharding(x)
        is_spread = isinstance(sharding, NamedSharding) and sharding.mesh.size > 1
        found.append(sharding if is_spread else None)  # pyrefly: ignore
    return found


def _owners(who: str, given: tuple[str, ...] | None, mesh: Any) -> tuple[str, ...]:
    if mesh is None:
        return given or ()
    names = tuple(mesh.axis_names)
    missing = [name for name in given or () if name not in names]
    if missing:
        axes = ", ".join(f"{n!r} ({s})" for n, s in mesh.shape.items())
        wrong = f"owners name an axis that is not in the mesh, got {', '.join(map(repr, missing))}"
        raise ValueError(message(who, wrong, allowed=f"the axes are {axes}"))
    return tuple(n for n in names if given is None or n in given)
