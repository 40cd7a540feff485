"""How partition specs are spelled and read: all that looks inside a `PartitionSpec`."""

import math
from collections.abc import Sequence
from typing import Any

from jax.sharding import NamedSharding, PartitionSpec


def entry(spec: PartitionSpec | None, dim: int) -> tuple[str, ...]:
    """The mesh axes that divide dimension `dim`."""
    return () if spec is None or dim >= len(spec) else names_in(spec[dim])


def entries(spec: PartitionSpec | None, rank: int) -> list[tuple[str, ...]]:
    """The mesh axes that divide each dimension."""
    return [entry(spec, dim) for dim in range(rank)]


def names_in(part: Any) -> tuple[str, ...]:
    """The mesh axes in one entry of a spec: None, a name or a tuple of names."""
    if part is None or part is PartitionSpec.UNCONSTRAINED:
        return ()
    return tuple(part) if isinstance(part, tuple | list) else (part,)


def all_names(spec: PartitionSpec) -> tuple[str, ...]:
    """The mesh axes that divide any dimension.

    >>> all_names(jax.sharding.PartitionSpec(None, ("a", "b"), "c"))
    ('a', 'b', 'c')
    """
    return tuple(name for part in spec for name in names_in(part))


def devices_along(names: Sequence[str], mesh: Any) -> int:
    """Into how many parts mesh axes divide what they divide."""
    return math.prod(mesh.shape[name] for name in names)


def shards_of(spec: PartitionSpec | None, dim: int, mesh: Any) -> int:
    """Into how many parts dimension `dim` is divided."""
    return devices_along(entry(spec, dim), mesh)


def is_even(spec: PartitionSpec | None, shape: Sequence[int], mesh: Any) -> bool:
    """Are all parts of an array of `shape` equal?"""
    return all(size % shards_of(spec, dim, mesh) == 0 for dim, size in enumerate(shape))


def normal_spec(parts: Sequence[tuple[str, ...]]) -> PartitionSpec:
    """The spelling that compiled functions return: no tuples of one, no trailing None.

    >>> tuple(normal_spec([("a",), (), ("b", "c"), ()]))
    ('a', None, ('b', 'c'))
    """
    short = [None if not e else e[0] if len(e) == 1 else tuple(e) for e in parts]
    while short and short[-1] is None:
        short.pop()
    return PartitionSpec(*short)


def respelled(spec: PartitionSpec | None, rank: int) -> PartitionSpec:
    """`spec` for an array of `rank`, in its normal spelling."""
    return normal_spec(entries(spec, rank))


def spec_of(sharding: Any) -> PartitionSpec:
    """A named sharding's spec; nothing is divided under any other kind."""
    return sharding.spec if isinstance(sharding, NamedSharding) else PartitionSpec()


def undivided(sharding: Any) -> Any:
    """A sharding over the same devices that divides nothing."""
    return NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else sharding


def in_words(spec: PartitionSpec) -> str:
    """The mesh axes of each dimension, for a table.

    >>> in_words(jax.sharding.PartitionSpec(None, ("a", "b"))), in_words(jax.sharding.PartitionSpec(None))
    ('-, a+b', 'whole')
    """
    words = ["+".join(names_in(part)) or "-" for part in spec]
    return ", ".join(words) if set(words) - {"-"} else "whole"
