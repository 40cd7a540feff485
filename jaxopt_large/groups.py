"""Different rules for different parts of the model, chosen by path."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ._errors import Problems, message
from ._paths import first_match, leaf_paths, matches, nearest
from ._types import AnyRule, Params, Rule, State, Updates, make_rule


def partition(rules: Mapping[str, AnyRule]) -> Rule:
    """Gives each leaf the first rule whose glob matches its path.

    Paths read like "layers/0/attn/q", for dictionaries, lists, dataclasses, Flax and Equinox modules
    alike. In a glob `*` matches anything, slashes included; `|` separates alternatives.

    Args:
      rules: glob -> rule, tried in order. Every leaf must find a rule and every glob a leaf.

    Returns:
      The rule; its state is optax's `PartitionState`, one entry per glob.

    Raises:
      ValueError: from `init`, when a leaf has no rule or a glob matches no leaf; all of them are
        named, with the nearest paths. At construction, when there are no rules.
      TypeError: an entry is not a glob with a rule.

    >>> rule = jl.partition({"*bias": jl.freeze(), "*": jl.sgd(0.1)})
    >>> params = {"dense": {"bias": jnp.ones(2), "kernel": jnp.ones((2, 2))}}
    >>> updates, _ = rule.update(params, rule.init(params), params)
    >>> float(updates["dense"]["bias"][0]), round(float(updates["dense"]["kernel"][0, 0]), 4)
    (-0.0, -0.1)
    """
    _check_rules(rules)
    globs = list(rules)

    def labels(tree: Any) -> Any:
        paths = leaf_paths(tree)
        chosen = [first_match(globs, path) for path in paths]
        _check_cover(globs, paths, chosen)
        return jax.tree.structure(tree).unflatten(chosen)

    by_glob: Any = dict(rules)
    inner = optax.partition(by_glob, labels)

    def update(
        updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        return inner.update(updates, state, params, **extra)

    return make_rule(inner.init, update)


def freeze() -> Rule:
    """Keeps parameters as they are, to the bit, and no state.

    >>> updates, state = jl.freeze().update(jnp.ones(2), jl.freeze().init(jnp.ones(2)))
    >>> updates.tolist(), state
    ([-0.0, -0.0], EmptyState())
    """

    def init(params: Params) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(updates: Updates, state: State, params: Any = None, **extra: Any) -> tuple[Updates, State]:
        del params, extra
        return jax.tree.map(_no_change, updates), state

    return make_rule(init, update)


def _no_change(g: Any) -> Any:
    if jnp.issubdtype(g.dtype, jnp.floating):
        return jnp.full_like(g, -0.0)  # x + (-0.0) is x, the sign of zero included
    return jnp.zeros_like(g)


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
        if not (hasattr(rule, "init") and hasattr(rule, "update")):
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
