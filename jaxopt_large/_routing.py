"""Different rules for different leaves: who has which is decided once, by `init`."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax

from ._errors import Problems, message
from ._gradients import by_leaf, flat_gradients, no_change
from ._nodes import StateNode
from ._paths import difference, leaf_paths, listed, nearest
from ._states import check_state
from ._static import ANYTHING, StaticNode, is_placeholder
from ._types import AnyRule, Params, Rule, Updates, make_rule


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Groups(StaticNode):
    """Which group each parameter is in, decided by `init`: (path, group) of each."""

    chosen: tuple[tuple[str, str], ...]

    @functools.cached_property
    def of(self) -> dict[str, str]:
        """Path -> group."""
        return dict(self.chosen)


class _PartitionFields(NamedTuple):
    inner_states: dict[str, optax.MaskedState]  # group -> the state of its rule
    groups: Groups


class PartitionState(_PartitionFields, StateNode):
    """State of `partition`: optax's `PartitionState`, and the groups."""

    __slots__ = ()

    def grouped(self) -> dict[str, tuple[str, Any]]:
        """Path of each parameter -> its group, and the state of that group's rule."""
        return {path: (group, self.inner_states[group]) for path, group in self.groups.chosen}


def routed(
    who: str,
    rules: Mapping[str, AnyRule],
    choose: Callable[[Params], Sequence[str]],
    frozen: Sequence[str] = (),
) -> Rule:
    """Gives each leaf to one of several rules; the state is a `PartitionState`.

    Args:
      who: for errors.
      rules: group -> rule.
      choose: from parameters to the group of each leaf, in the order of `jax.tree.leaves`.
      frozen: groups of leaves that need no gradient.

    Returns:
      The rule. A group without leaves keeps a state of none.
    """
    inner = {group: optax.with_extra_args_support(rule) for group, rule in rules.items()}

    def init(params: Params) -> PartitionState:
        if is_placeholder(params):
            states = {group: optax.MaskedState(rule.init(params)) for group, rule in inner.items()}
            return PartitionState(states, ANYTHING)
        leaves, treedef = jax.tree.flatten(params)
        chosen = choose(params)
        states = {
            group: optax.MaskedState(rule.init(treedef.unflatten(_masked(leaves, chosen, group))))
            for group, rule in inner.items()
        }
        pairs = zip(leaf_paths(params), chosen, strict=True)
        return PartitionState(states, Groups(tuple((path, str(group)) for path, group in pairs)))

    def update(
        updates: Updates, state: PartitionState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, PartitionState]:
        check_state(who, PartitionState, state)
        if state.inner_states.keys() != inner.keys():
            wrong = f"the state is of other groups, got {listed(list(state.inner_states))}"
            do = "Pass what this rule's init or update has returned, or jl.convert the state"
            raise ValueError(message(who, wrong, allowed=f"the groups are {listed(list(inner))}", do=do))
        walk = _Walk(who, state.groups, updates, params, set(frozen))
        changes, states = list(walk.unchanged), {}
        for group, rule in inner.items():
            new, kept = rule.update(
                walk.masked(walk.gradients, group),
                state.inner_states[group].inner_state,
                None if params is None else walk.masked(walk.params, group),
                **extra,
            )
            states[group] = optax.MaskedState(kept)
            made = walk.treedef.flatten_up_to(new)  # around it there may be another partition's holes
            for i in walk.members.get(group, ()):
                changes[i] = made[i]
        return walk.treedef.unflatten(changes), PartitionState(states, state.groups)

    return make_rule(init, update)


def _masked(leaves: list[Any], chosen: Sequence[str], group: str) -> list[Any]:
    """The leaves of one group; a hole, as `optax.masked` has it, in the place of all others."""
    return [x if c == group else optax.MaskedNode() for x, c in zip(leaves, chosen, strict=True)]


class _Walk:
    """Gradients, and parameters where they are given, leaf by leaf, each with its group.

    Attributes:
      gradients: None where one is missing.
      params: in the same order; None where there are none.
      members: group -> the places of its leaves that have a gradient.
      unchanged: updates of frozen leaves without a gradient; None elsewhere.
    """

    def __init__(self, who: str, groups: Groups, updates: Updates, params: Params | None, frozen: set[str]):
        self._who = who
        updates = updates if params is None else by_leaf(updates, params)
        self.gradients, self.treedef = flat_gradients(updates)
        paths = leaf_paths(updates, is_leaf=lambda x: x is None)
        self.params: list[Any] = [None] * len(paths)
        if params is not None:
            self.params = jax.tree.leaves(params, is_leaf=lambda x: x is None)
            if leaf_paths(params, is_leaf=lambda x: x is None) != paths:
                wrong = f"gradients do not have the structure of the params: {difference(params, updates)}"
                do = "Pass None for a frozen leaf without a gradient, and all others"
                raise ValueError(message(who, wrong, do=do))
        self._chosen = [groups.of.get(path) for path in paths]
        self._check(groups, paths, frozen)
        self.members: dict[str, list[int]] = {}
        for i, (group, g) in enumerate(zip(self._chosen, self.gradients, strict=True)):
            if g is not None and group is not None:
                self.members.setdefault(group, []).append(i)
        self.unchanged = [
            None if g is not None or p is None else no_change(p)
            for g, p in zip(self.gradients, self.params, strict=True)
        ]

    def masked(self, leaves: list[Any], group: str) -> Any:
        found: list[Any] = [None if c is None else optax.MaskedNode() for c in self._chosen]
        for i in self.members.get(group, ()):
            found[i] = leaves[i]
        return self.treedef.unflatten(found)

    def _check(self, groups: Groups, paths: list[str], frozen: set[str]) -> None:
        problems = Problems(self._who)
        for path, group, g in zip(paths, self._chosen, self.gradients, strict=True):
            if group is None and g is not None:
                near = f"the nearest are {nearest(path, list(groups.of))}"
                problems.add("a gradient is of no parameter that init was given", at=path, allowed=near)
            elif group is not None and g is None and group not in frozen:
                problems.add(f"the gradient is missing of a leaf that {group!r} is to train", at=path)
        absent = groups.of.keys() - set(paths)
        for path in sorted(path for path in absent if groups.of[path] not in frozen):
            problems.add(f"the gradient is missing of a leaf that {groups.of[path]!r} is to train", at=path)
        if problems.found:
            problems.found.append("Pass it, or give the leaf to freeze().")
        problems.raise_if_any()
