"""How an array of a traced function is divided over a mesh, and what changing that sends."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

Axes = tuple[str, ...]
Dims = tuple[Axes, ...]  # the mesh axes that divide each dimension


class Layout(NamedTuple):
    """How one array is divided.

    Attributes:
      dims: the mesh axes of each dimension.
      owed: axes over which it is still to be summed.
      free: is it a constant, any part of which costs nothing?
    """

    dims: Dims
    owed: Axes = ()
    free: bool = False

    @property
    def axes(self) -> Axes:
        """All that divide it."""
        return tuple(name for axes in self.dims for name in axes)


class Sent(NamedTuple):
    """A collective.

    Attributes:
      kind: as `jl.plan.collectives` has it.
      axes: the mesh axes over which devices exchange.
      bytes: of the whole arrays on one device: what is reduced, or what has been gathered.
      rounds: how often, in one call.
      loops: in how many loops it stands.
    """

    kind: str
    axes: Axes
    bytes: int
    rounds: int
    loops: int


def whole(rank: int, *, free: bool = False) -> Layout:
    """Divided by nothing."""
    return Layout(((),) * rank, (), free)


def refines(one: Dims, other: Dims) -> bool:
    """Is what `one` divides divided at least as `other` divides it?"""
    return all(a[: len(b)] == b for a, b in zip(one, other, strict=True))


def longer(one: Axes, other: Axes) -> Axes:
    """Of the axes of two dimensions that are worked on together, those that divide more."""
    return max((one, other), key=len)


def local_elements(shape: Sequence[int], dims: Dims, sizes: Mapping[str, int]) -> int:
    """Of one device's part."""
    return math.prod(-(-n // math.prod(sizes[a] for a in axes)) for n, axes in zip(shape, dims, strict=True))


def reshaped(dims: Dims, old: Sequence[int], new: Sequence[int], sizes: Mapping[str, int]) -> Dims:
    """The axes of each dimension after a reshape: a dimension's go to the first that comes of it.

    >>> reshaped((("a",), ()), (8, 6), (48,), {"a": 2}), reshaped((("a",), ()), (8, 6), (2, 4, 6), {"a": 2})
    ((('a',),), (('a',), (), ()))
    """
    found: list[Axes] = [()] * len(new)
    i = j = 0
    while i < len(old) and j < len(new):
        first_old, first_new = i, j
        left, right = old[i], new[j]
        while left != right:
            if left < right and i + 1 < len(old):
                i += 1
                left *= old[i]
            elif right < left and j + 1 < len(new):
                j += 1
                right *= new[j]
            else:
                return tuple(found)
        # of the dimensions that are joined or split, the first that is longer than 1 has the axes
        start = next((k for k in range(first_old, i + 1) if old[k] > 1), first_old)
        place = next((k for k in range(first_new, j + 1) if new[k] > 1), first_new)
        if new[place] % math.prod(sizes[a] for a in dims[start]) == 0:
            found[place] = dims[start]
        i, j = i + 1, j + 1
    return tuple(found)


def joined(layouts: Sequence[Layout]) -> Layout:
    """Of what works element by element on arrays of one shape: divided where any of them is."""
    fixed = [x for x in layouts if not x.free] or list(layouts)
    rank, used, dims = len(fixed[0].dims), set[str](), []
    for dim in range(rank):
        best: Axes = max((x.dims[dim] for x in fixed), key=len)
        axes = tuple(a for a in best if a not in used)
        used.update(axes)
        dims.append(axes)
    owed = tuple(dict.fromkeys(a for x in fixed for a in x.owed if a not in used))
    return Layout(tuple(dims), owed, all(x.free for x in layouts))
