"""Different rules for different parts of the model, chosen by path."""

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ._errors import Problems, is_rule, message
from ._gradients import is_missing, no_change
from ._masks import spread
from ._paths import first_match, leaf_paths, matches, nearest
from ._routing import routed
from ._types import AnyRule, Params, Rule, State, Updates, make_rule


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

    def choose(params: Params) -> list[str]:
        paths = leaf_paths(params)
        chosen = [first_match(globs, path) for path in paths]
        _check_cover(globs, paths, chosen)
        return [str(glob) for glob in chosen]

    return routed("partition", rules, choose, [glob for glob, rule in rules.items() if _freezes(rule)])


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
