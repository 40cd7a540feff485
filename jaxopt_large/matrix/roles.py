"""Roles: how a leaf is read as matrices [in, out]; declared by path, never guessed.

A role names each dimension of a leaf:

    "in out"                a matrix
    "out in"                a matrix of a framework that keeps the outputs first
    "layers in out"         a stack of matrices, one for each layer of a `lax.scan`
    "experts in out"        the same, one for each expert: any other name counts matrices
    "in (3 out)"            queries, keys and values side by side: three matrices
    "in (12 out)"           a matrix for each of 12 heads
    "in in in out"          a convolution's kernel: height, width and inputs are one dimension
    "other"                 no matrix: for the rule of the other leaves
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array

from .._errors import Problems, message
from .._paths import listed, matches, nearest

__all__ = ["OTHER_LEAVES", "Role", "convolution", "experts", "fused", "heads", "matrix", "other", "stack"]

OTHER_LEAVES = (
    "*embed*|*_emb|*_emb/*|*position*|*wte|*wpe|*wte/*|*wpe/*|*lm_head*|head|*/head|head/*|*/head/*"
    "|*norm*|*bias*|*scale*"
)
"""Embeddings, heads, norms and biases, by the names that models give them."""

_TOKEN = re.compile(r"\(([^()]*)\)|(\S+)")
_NAME = re.compile(r"[^\W\d]\w*|\d+")
_IN, _OUT, _OTHER = "in", "out", "other"
_GRAMMAR = 'a name for each dimension, with at least one "in" and one "out"; "(3 out)" is three side by side'


class View(NamedTuple):
    """A leaf of a given shape, read as matrices.

    A unit is what one device works on as a whole: the leaf without the dimensions that only count.

    Attributes:
      units: the dimensions that count units.
      unit: the shape of one.
      split: the same with dimensions taken apart that hold several things side by side.
      order: of these: those that count, then those of inputs, then of outputs.
      counting: how many of them count.
      inner: how many matrices are in a unit.
      rows: inputs of a matrix.
      columns: outputs.
    """

    units: tuple[int, ...]
    unit: tuple[int, ...]
    split: tuple[int, ...]
    order: tuple[int, ...]
    counting: int
    inner: int
    rows: int
    columns: int

    @property
    def inner_counts(self) -> tuple[int, ...]:
        """The dimensions that count matrices in a unit."""
        return tuple(self.split[d] for d in self.order[: self.counting])

    def matrices(self, x: Array) -> Array:
        """Units [n, *unit] as matrices [n * inner, rows, columns]."""
        apart = x.reshape(-1, *self.split).transpose(0, *(d + 1 for d in self.order))
        return apart.reshape(-1, self.rows, self.columns)

    def from_matrices(self, x: Array) -> Array:
        """The inverse."""
        places = np.argsort(self.order)
        apart = x.reshape(-1, *(self.split[d] for d in self.order)).transpose(0, *(d + 1 for d in places))
        return apart.reshape(-1, *self.unit)


@dataclasses.dataclass(frozen=True)
class Role:
    """How a leaf is read as matrices.

    Attributes:
      text: a name for each dimension, see the module.
    """

    text: str

    def __post_init__(self) -> None:
        problems = Problems("role")
        _check_grammar(problems, self.text)
        problems.raise_if_any()

    @functools.cached_property
    def dimensions(self) -> tuple[tuple[str, ...], ...]:
        """The names and numbers of each dimension."""
        return _dimensions(self.text)

    @property
    def is_other(self) -> bool:
        """Is it of leaves that are no matrices?"""
        return self.text.strip() == _OTHER

    def view(self, shape: Sequence[int]) -> View:
        """A leaf of a shape, read so.

        Raises:
          ValueError: the role is for another number of dimensions, or one does not divide.
        """
        wrong = self.misfit(shape)
        if wrong:
            raise ValueError(message("role", wrong))
        units, unit, split, kinds = [], [], [], []
        for dim, (size, names) in enumerate(zip(shape, self.dimensions, strict=True)):
            if len(names) == 1 and names[0] not in (_IN, _OUT):
                units.append(dim)
                continue
            unit.append(size)
            parts = math.prod(int(n) for n in names if n.isdigit())
            split += [int(n) if n.isdigit() else size // parts for n in names]
            kinds += [n if n in (_IN, _OUT) else "" for n in names]
        order = [d for kind in ("", _IN, _OUT) for d, k in enumerate(kinds) if k == kind]
        inner, rows, columns = (
            math.prod(s for s, k in zip(split, kinds, strict=True) if k == kind) for kind in ("", _IN, _OUT)
        )
        counting = sum(not k for k in kinds)
        return View(tuple(units), tuple(unit), tuple(split), tuple(order), counting, inner, rows, columns)

    def misfit(self, shape: Sequence[int]) -> str:
        """Why a leaf of a shape cannot be read so; "" if it can."""
        if len(shape) != len(self.dimensions):
            return f"role {self.text!r} is for {len(self.dimensions)} dimensions, got shape {tuple(shape)}"
        for size, names in zip(shape, self.dimensions, strict=True):
            parts = math.prod(int(n) for n in names if n.isdigit())
            if size % parts:
                return f"role {self.text!r} takes a dimension of {size} apart into {parts}"
        return ""


def _dimensions(text: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple((inside or alone).split()) for inside, alone in _TOKEN.findall(text))


def _check_grammar(problems: Problems, text: str) -> None:
    dimensions = _dimensions(text)
    names = [name for dim in dimensions for name in dim]
    if text.strip() == _OTHER:
        return
    if _IN not in names or _OUT not in names:
        problems.add(f"role {text!r} names no inputs or no outputs", allowed=_GRAMMAR)
    elif not all(_NAME.fullmatch(name) for name in names):
        problems.add(f"role {text!r} has what is no name and no number", allowed=_GRAMMAR)
    elif any(sum(not n.isdigit() for n in dim) != 1 or "0" in dim for dim in dimensions):
        problems.add(f"role {text!r} has other than numbers and one name in parentheses", allowed=_GRAMMAR)


def matrix(*, transposed: bool = False) -> Role:
    """A matrix [in, out]; [out, in] if `transposed`, as Equinox and PyTorch keep it.

    >>> jl.roles.matrix(transposed=True)
    Role(text='out in')
    """
    return Role("out in" if transposed else "in out")


def stack() -> Role:
    """Matrices [layers, in, out], one for each layer of a `lax.scan`."""
    return Role("layers in out")


def experts(*, layers: bool = False) -> Role:
    """Matrices [experts, in, out], or [layers, experts, in, out]."""
    return Role("layers experts in out" if layers else "experts in out")


def fused(parts: int = 3, *, layers: bool = False) -> Role:
    """Matrices side by side along the outputs, [in, parts * out]: queries, keys and values.

    Args:
      parts: how many.
      layers: is there a first dimension that counts layers?

    >>> jl.roles.fused(3, layers=True)
    Role(text='layers in (3 out)')
    """
    return Role(f"{'layers ' if layers else ''}in ({parts} out)")


def heads(count: int, *, layers: bool = False) -> Role:
    """A matrix for each head, [in, count * out].

    Args:
      count: heads.
      layers: is there a first dimension that counts layers?
    """
    return fused(count, layers=layers)


def convolution(spatial: int = 2) -> Role:
    """A kernel [*spatial, in, out], worked on as one matrix [spatial * in, out].

    Args:
      spatial: how many dimensions, before the inputs.
    """
    return Role("in " * spatial + "in out")


def other() -> Role:
    """No matrix: a leaf for the rule of the other leaves."""
    return Role(_OTHER)


# --- which leaf has which ------------------------------------------------------------------------------


def checked_roles(who: str, roles: Any) -> dict[str, Role]:
    """Roles by glob, as users write them.

    Raises:
      TypeError: it is no mapping of globs to roles.
      ValueError: a role has another grammar.
    """
    if roles is None:
        return {}
    if not isinstance(roles, Mapping):
        raise TypeError(message(who, f"roles is not a mapping, got {roles!r}", allowed="{glob: role}"))
    kinds, problems = Problems(who), Problems(who)
    for glob, role in roles.items():
        if not isinstance(glob, str):
            kinds.add(f"a glob of roles is not a string, got {glob!r}")
        elif isinstance(role, str):
            _check_grammar(problems, role)
        elif not isinstance(role, Role):
            kinds.add(f"a role is not a string or a Role, got {role!r} for {glob!r}", allowed=_GRAMMAR)
    kinds.raise_if_any(TypeError)
    problems.raise_if_any()
    return {glob: Role(role) if isinstance(role, str) else role for glob, role in roles.items()}


def assigned(
    who: str,
    roles: Mapping[str, Role],
    others: str,
    paths: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
    *,
    parts: bool = False,
) -> list[Role]:
    """The role of each leaf: other leaves first, then the first glob that matches, then by rank.

    A leaf of two dimensions that nothing names is a matrix [in, out]; smaller ones are none. Of a tree in
    `parts` some leaves are with other rules: then a glob may be theirs.

    Raises:
      ValueError: a leaf has more than two dimensions and no role, a role does not fit a leaf, or a glob gets
        no leaf. All are named.
    """
    problems, found, used = Problems(who), [], set()
    for path, shape in zip(paths, shapes, strict=True):
        glob = next((g for g in roles if matches(g, path)), None)
        if (others and matches(others, path)) or 0 in shape:
            found.append(other())
            continue
        if glob is None and len(shape) < 2:
            found.append(other())
            continue
        if glob is None and len(shape) > 2:
            problems.add(
                f"a leaf of {len(shape)} dimensions has no role, got shape {shape}",
                at=path or "the root",
                allowed="see jl.roles: stack, experts, fused, convolution, other",
                do=f"Declare it: roles={{{path!r}: {_suggested(shape)}}}",
            )
            continue
        role = matrix() if glob is None else roles[glob]
        used.add(glob)
        wrong = "" if role.is_other else role.misfit(shape)
        if wrong:
            problems.add(wrong, at=path or "the root", do="Give it a role of its own, before this one")
        found.append(role)
    for glob in roles:
        if glob not in used and paths and not parts:
            _add_unused(problems, glob, others, paths)
    problems.raise_if_any()
    return found


def _suggested(shape: tuple[int, ...]) -> str:
    """A role that a shape may have, as it is written."""
    return {3: "jl.roles.stack()", 4: "jl.roles.convolution()"}.get(len(shape), '"layers ... in out"')


def _add_unused(problems: Problems, glob: str, others: str, paths: Sequence[str]) -> None:
    taken = [path for path in paths if matches(glob, path)]
    if not taken:
        near = f"the nearest are {nearest(glob, paths)}"
        problems.add(f"roles name {glob!r}, which matches no leaf", allowed=near)
        return
    why = "others, or earlier roles, took all it matches" if len(taken) > 1 else "others took it"
    problems.add(
        f"roles name {glob!r}, which gets no leaf: {why}, {listed(taken)}",
        allowed=f"other leaves are {others!r}",
        do="Put it before them, or pass other_leaves",
    )
