"""Different rules for different parts of the model, chosen by path."""

import dataclasses
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ._errors import Problems, is_rule, message
from ._gradients import by_leaf, flat_gradients, is_missing, no_change
from ._masks import spread
from ._nodes import StateNode
from ._paths import difference, first_match, leaf_paths, listed, matches, nearest
from ._states import check_state
from ._static import ANYTHING, StaticNode, is_placeholder
from ._types import AnyRule, Params, Rule, State, Updates, make_rule


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Groups(StaticNode):
    """Which group each parameter is in, decided by `init`: (path, glob) of each."""

    chosen: tuple[tuple[str, str], ...]

    @functools.cached_property
    def of(self) -> dict[str, str]:
        """Path -> glob."""
        return dict(self.chosen)


class _PartitionFields(NamedTuple):
    inner_states: dict[str, optax.MaskedState]  # glob -> the state of its rule
    groups: Groups


class PartitionState(_PartitionFields, StateNode):
    """State of `partition`: optax's `PartitionState`, and the groups."""

    __slots__ = ()

    def grouped(self) -> dict[str, tuple[str, Any]]:
        """Path of each parameter -> its glob, and the state of that glob's rule."""
        return {path: (glob, self.inner_states[glob]) for path, glob in self.groups.chosen}


def partition(
    transforms: Mapping[Any, AnyRule], param_labels: Any = None, *, mask_compatible_extra_args: bool = False
) -> Rule:
    """Gives each leaf the first rule whose glob matches its path.

    Paths read like "layers/0/attn/q", for dictionaries, lists, dataclasses, Flax and Equinox modules
    alike. In a glob `*` matches anything, slashes included; `|` separates alternatives.

    Groups are decided once, from the parameters that `init` gets. A leaf of `freeze()` needs no gradient: it
    may be None (filtered out) or float0 (of integers); its update is there where `params` are given.

    With `param_labels` this is `optax.partition`, and keys are labels.

    Args:
      transforms: glob -> rule, tried in order. Every leaf must find a rule and every glob a leaf.
      param_labels: the label of each leaf: a tree of them, a prefix of one, or a function from parameters
        to one. Without it globs decide.
      mask_compatible_extra_args: optax's, for labels.

    Returns:
      The rule; its state is `PartitionState(inner_states, groups)`, one inner state per glob.

    Raises:
      ValueError: from `init`, when a leaf has no rule or a glob matches no leaf; all of them are
        named, with the nearest paths. At construction, when there are no rules. From `update`, when the
        gradient of a leaf is missing that is not frozen.
      TypeError: an entry is not a glob with a rule.

    >>> rule = jl.partition({"*bias": jl.freeze(), "*": jl.sgd(0.1)})
    >>> params = {"dense": {"bias": jnp.ones(2), "kernel": jnp.ones((2, 2))}}
    >>> updates, _ = rule.update(params, rule.init(params), params)
    >>> float(updates["dense"]["bias"][0]), round(float(updates["dense"]["kernel"][0, 0]), 4)
    (-0.0, -0.1)
    """
    if param_labels is not None:
        return optax.with_extra_args_support(
            optax.partition(transforms, param_labels, mask_compatible_extra_args=mask_compatible_extra_args)
        )
    rules = transforms
    _check_rules(rules)
    globs = list(rules)
    inner = {glob: optax.with_extra_args_support(rule) for glob, rule in rules.items()}
    frozen = {glob for glob, rule in rules.items() if _freezes(rule)}

    def init(params: Params) -> PartitionState:
        if is_placeholder(params):
            states = {glob: optax.MaskedState(rule.init(params)) for glob, rule in inner.items()}
            return PartitionState(states, ANYTHING)
        leaves, treedef = jax.tree.flatten(params)
        paths = leaf_paths(params)
        chosen = [first_match(globs, path) for path in paths]
        _check_cover(globs, paths, chosen)
        states = {
            glob: optax.MaskedState(rule.init(treedef.unflatten(_masked(leaves, chosen, glob))))
            for glob, rule in inner.items()
        }
        return PartitionState(
            states, Groups(tuple((path, str(glob)) for path, glob in zip(paths, chosen, strict=True)))
        )

    def update(
        updates: Updates, state: PartitionState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, PartitionState]:
        check_state("partition", PartitionState, state)
        if state.inner_states.keys() != inner.keys():
            wrong = f"the state is of other globs, got {listed(list(state.inner_states))}"
            do = "Pass what this rule's init or update has returned, or jl.convert the state"
            raise ValueError(message("partition", wrong, allowed=f"the globs are {listed(globs)}", do=do))
        walk = _Walk(state.groups, updates, params, frozen)
        changes, states = list(walk.unchanged), {}
        for glob, rule in inner.items():
            new, kept = rule.update(
                walk.masked(walk.gradients, glob),
                state.inner_states[glob].inner_state,
                None if params is None else walk.masked(walk.params, glob),
                **extra,
            )
            states[glob] = optax.MaskedState(kept)
            made = walk.treedef.flatten_up_to(new)  # around it there may be another partition's holes
            for i in walk.members.get(glob, ()):
                changes[i] = made[i]
        return walk.treedef.unflatten(changes), PartitionState(states, state.groups)

    return make_rule(init, update)


def _masked(leaves: list[Any], chosen: Sequence[str | None], glob: str) -> list[Any]:
    """The leaves of one group; a hole, as `optax.masked` has it, in the place of all others."""
    return [x if c == glob else optax.MaskedNode() for x, c in zip(leaves, chosen, strict=True)]


class _Walk:
    """Gradients, and parameters where they are given, leaf by leaf, each with its group.

    Attributes:
      gradients: None where one is missing.
      params: in the same order; None where there are none.
      members: glob -> the places of its leaves that have a gradient.
      unchanged: updates of frozen leaves without a gradient; None elsewhere.
    """

    def __init__(self, groups: Groups, updates: Updates, params: Params | None, frozen: set[str]):
        updates = updates if params is None else by_leaf(updates, params)
        self.gradients, self.treedef = flat_gradients(updates)
        paths = leaf_paths(updates, is_leaf=lambda x: x is None)
        self.params: list[Any] = [None] * len(paths)
        if params is not None:
            self.params = jax.tree.leaves(params, is_leaf=lambda x: x is None)
            if leaf_paths(params, is_leaf=lambda x: x is None) != paths:
                wrong = f"gradients do not have the structure of the params: {difference(params, updates)}"
                do = "Pass None for a frozen leaf without a gradient, and all others"
                raise ValueError(message("partition", wrong, do=do))
        self._chosen = [groups.of.get(path) for path in paths]
        self._check(groups, paths, frozen)
        self.members: dict[str, list[int]] = {}
        for i, (glob, g) in enumerate(zip(self._chosen, self.gradients, strict=True)):
            if g is not None and glob is not None:
                self.members.setdefault(glob, []).append(i)
        self.unchanged = [
            None if g is not None or p is None else no_change(p)
            for g, p in zip(self.gradients, self.params, strict=True)
        ]

    def masked(self, leaves: list[Any], glob: str) -> Any:
        found: list[Any] = [None if c is None else optax.MaskedNode() for c in self._chosen]
        for i in self.members.get(glob, ()):
            found[i] = leaves[i]
        return self.treedef.unflatten(found)

    def _check(self, groups: Groups, paths: list[str], frozen: set[str]) -> None:
        problems = Problems("partition")
        for path, glob, g in zip(paths, self._chosen, self.gradients, strict=True):
            if glob is None and g is not None:
                near = f"the nearest are {nearest(path, list(groups.of))}"
                problems.add("a gradient is of no parameter that init was given", at=path, allowed=near)
            elif glob is not None and g is None and glob not in frozen:
                problems.add(f"the gradient is missing of a leaf that {glob!r} is to train", at=path)
        absent = groups.of.keys() - set(paths)
        for path in sorted(path for path in absent if groups.of[path] not in frozen):
            problems.add(f"the gradient is missing of a leaf that {groups.of[path]!r} is to train", at=path)
        if problems.found:
            problems.found.append("Pass it, or give the leaf to freeze().")
        problems.raise_if_any()


def freeze(mask: Any = None) -> Rule:
    """Keeps parameters as they are, to the bit, and no state.

    Args:
      mask: as `optax.freeze` takes it, or a glob: where it is True the update is 0, other updates pass. By
        default all parameters stay.

    >>> updates, state = jl.freeze().update(jnp.ones(2), jl.freeze().init(jnp.ones(2)))
    >>> updates.tolist(), state
    ([-0.0, -0.0], EmptyState())
    """

    if mask is not None:

        def frozen(tree: Any) -> Any:
            return jax.tree.unflatten(jax.tree.structure(tree), spread("freeze", mask, tree, tree))

        return optax.with_extra_args_support(optax.freeze(frozen))  # pyrefly: ignore

    def init(params: Params) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(updates: Updates, state: State, params: Any = None, **extra: Any) -> tuple[Updates, State]:
        del extra
        if params is None:
            return jax.tree.map(_still, updates), state
        leaves, treedef = jax.tree.flatten(params)
        found = treedef.flatten_up_to(updates)
        changes = [no_change(p if is_missing(g) else g) for p, g in zip(leaves, found, strict=True)]
        return treedef.unflatten(changes), state

    return make_rule(init, update)


def _freezes(rule: AnyRule) -> bool:
    """Does a rule move nothing, whatever the gradient? `freeze()`, or `optax.set_to_zero()`."""
    return _code_of(rule) in _FREEZING


def _code_of(rule: AnyRule) -> Any:
    """What tells rules that one function made from others."""
    return getattr(inspect.unwrap(rule.update), "__code__", rule.update)


def _still(g: Any) -> Any:
    """No change, where the parameter is not known: a weak 0 takes its dtype."""
    return jnp.broadcast_to(jnp.asarray(0), jnp.shape(g)) if is_missing(g) else no_change(g)


def _check_rules(rules: Any) -> None:
    who = "partition"
    if not isinstance(rules, Mapping):
        raise TypeError(
            message(who, f"rules is not a mapping, got {rules!r}", allowed="a mapping {glob: rule}")
        )
    if not rules:
        raise ValueError(message(who, "rules is empty, got {}", do='Give at least {"*": rule}'))
    problems = Problems(who)
    for glob, rule in rules.items():
        if not isinstance(glob, str):
            problems.add(f"a glob is not a string, got {glob!r}")
        if not is_rule(rule):
            problems.add(f"the entry for {glob!r} is not a rule, got {rule!r}")
    problems.raise_if_any(TypeError)


def _check_cover(globs: list[str], paths: list[str], chosen: list[str | None]) -> None:
    problems = Problems("partition")
    bare = [path for path, glob in zip(paths, chosen, strict=True) if glob is None]
    if bare:
        problems.add(
            f"{len(bare)} of {len(paths)} leaves have no rule, the nearest globs do not match",
            at=nearest(globs[-1], bare),
            do='End with "*" for the rest',
        )
    for glob in globs:
        if glob in chosen:
            continue
        taken = [path for path in paths if matches(glob, path)]
        if taken:
            problems.add(
                f"glob {glob!r} gets no leaf: earlier globs took all {len(taken)} it matches",
                at=nearest(glob, taken),
                do="Put it before them",
            )
        else:
            problems.add(
                f"glob {glob!r} matches none of {len(paths)} leaves",
                allowed=f"the nearest paths are {nearest(glob, paths)}",
            )
    problems.raise_if_any(ValueError)


_FREEZING = (_code_of(freeze()), _code_of(optax.set_to_zero()))
