"""One row for each array of a state: whose it is, which transform keeps it, and what it takes."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._encoded import is_encoded
from ._nodes import Place, StateNode, answers, bytes_of, nodes_in
from ._owners import Owners, holder
from ._paths import leaf_paths, path_string
from ._types import Params

NONE = "-"


class StateRow(NamedTuple):
    """One array of a state; codes with their scales are one.

    Attributes:
      path: of the parameter it belongs to; "-" for what all share, such as a step count.
      group: the glob, or optax's label, of the part that the parameter is in; of nested ones all,
        "outer > inner"; "" where there are none.
      rule: the transform that keeps it: the name of the state's class without "ScaleBy" and "State",
        "adam" for `ScaleByAdamState`; "-" where no class holds it, or the parameter has no state.
      field: of that state, "mu"; "-" for a parameter without state.
      dtype: or the name of the format, "int8", whose scales count in `bytes`.
      shape: of the array; of the parameter where it has no state.
      bytes: of the whole array; inside mapped axes, of one device's.
      where: the mesh axes of each dimension or "whole", "flat", "host"; "" where no wrapper places it.
      device_bytes: on one device, as far as `zero` and `offload` decide it.
      is_decided: does `zero`, `offload` or `stored` hold it?
    """

    path: str
    group: str
    rule: str
    field: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    where: str
    device_bytes: int
    is_decided: bool


def state_rows(
    state: Any, params: Params, mapped: tuple[int, ...] = (), on_device: Sequence[int] | None = None
) -> list[StateRow]:
    """A row for each array, in the order of the parameters; first what all of them share.

    Args:
      state: its shapes; each with an axis in front for each of `mapped`.
      params: the parameters.
      mapped: the sizes of mapped axes.
      on_device: bytes of each array on one device, where they are known; what is in the host's memory is
        left out.
    """
    names, params_leaves = leaf_paths(params), jax.tree.leaves(params)
    keys = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    owners = Owners(keys)
    placed = places(state, math.prod(mapped))
    decided = [False] * len(placed)
    for _, start, stop in nodes_in(state, StateNode.decisions):
        decided[start:stop] = [True] * (stop - start)
    found: list[tuple[int, StateRow]] = []
    at = 0
    for path, x in jax.tree_util.tree_flatten_with_path(state, is_leaf=is_encoded)[0]:
        count = len(jax.tree.leaves(x))
        mine, covered = placed[at : at + count], at < len(decided) and decided[at]
        if on_device is not None:
            held = zip(mine, on_device[at : at + count], strict=True)
            mine = [place._replace(device_bytes=n) if place.device_bytes else place for place, n in held]
        at += count
        if not mine:
            continue
        rule, field, group, owner = _described(state, path, keys, params_leaves, owners, x, len(mapped))
        array = x.codes if is_encoded(x) else x
        row = StateRow(
            path=NONE if owner is None else names[owner],
            group=group,
            rule=rule,
            field=field,
            dtype=x.format.name if is_encoded(x) else str(array.dtype),
            shape=tuple(array.shape)[len(mapped) :],
            bytes=sum(leaf.bytes for leaf in mine),
            where=mine[0].where,
            device_bytes=sum(leaf.device_bytes for leaf in mine),
            is_decided=covered,
        )
        found.append((-1 if owner is None else owner, row))
    groups = _groups(state)
    for i in set(range(len(names))) - {owner for owner, _ in found}:
        group = " > ".join(groups.get(names[i], ()))
        row = StateRow(names[i], group, NONE, NONE, NONE, jnp.shape(params_leaves[i]), 0, "", 0, False)
        found.append((i, row))
    return [row for _, row in sorted(found, key=lambda pair: pair[0])]


def places(state: Any, copies: int) -> list[Place]:
    """Where each array is, in the order of `jax.tree.leaves`; inner nodes say first."""
    sizes = [bytes_of(x) // copies for x in jax.tree.leaves(state)]  # inside mapped axes one of `copies`
    found = [Place(size, size, "") for size in sizes]
    for node, start, stop in reversed([*nodes_in(state, StateNode.places)]):
        found[start:stop] = node.places(found[start:stop])
    return found


def rule_name(state: type) -> str:
    """The transform that keeps states of a class.

    >>> rule_name(optax.ScaleByAdamState), rule_name(optax.TraceState)
    ('adam', 'trace')
    """
    bare = re.sub(r"^ScaleBy(?=.)|(?<=.)State$", "", state.__name__.strip("_")) or state.__name__
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", bare).lower()


def _described(
    state: Any,
    path: tuple[Any, ...],
    keys: list[Any],
    params: list[Any],
    owners: Owners,
    x: Any,
    mapped: int,
) -> tuple[str, str, str, int | None]:
    """The rule, the field, the group and the parameter of an array of the state."""
    found = holder(state, path)
    whole = owners.first(path)
    if found is not None and whole is not None and keys[whole] == path:  # classes are the parameters'
        found = None
    begin = 0 if found is None else found.at
    after = path[begin:] if found is None else path[begin + 1 :]
    owner = owners.first(after)
    if owner is not None and not keys[owner]:  # a bare array's path is on any
        rank = (x.codes.ndim if is_encoded(x) else x.ndim) - mapped
        floating = jnp.issubdtype(x.dtype, jnp.inexact)
        owner = owner if rank > 0 or (jnp.ndim(params[owner]) == 0 and floating) else None
    inside = path[begin:]
    if owner is not None and keys[owner]:
        key = tuple(keys[owner])
        starts = [
            n for n in range(len(path) - len(key), begin - 1, -1) if tuple(path[n : n + len(key)]) == key
        ]
        inside = path[begin : starts[0]]
    group = " > ".join(
        str(getattr(path[n + 1], "key", path[n + 1]))
        for n in range(begin)
        if getattr(path[n], "name", "") == "inner_states" and n + 1 < len(path)
    )
    return (NONE if found is None else rule_name(found.state)), path_string(inside) or NONE, group, owner


def _groups(state: Any) -> dict[str, tuple[str, ...]]:
    """Path of a parameter -> the groups that it is in, the outermost first."""
    found: dict[str, tuple[str, ...]] = {}
    for node in filter(_has_groups, jax.tree.leaves(state, is_leaf=_has_groups)):
        chosen = node.grouped()
        states = {id(below): below for _, below in chosen.values()}  # one for each group, not for each leaf
        inner = {name: _groups(below) for name, below in states.items()}
        for path, (group, below) in chosen.items():
            found.setdefault(path, (group, *inner[id(below)].get(path, ())))
    return found


_has_groups = answers(StateNode.grouped)
