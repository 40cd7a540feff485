"""States of one rule as states of another: float32 and stored, optax's and ours."""

import collections
from typing import Any

import jax
import jax.numpy as jnp

from .._encoded import is_encoded
from .._errors import Problems, message
from .._paths import path_string
from .._types import AnyRule, Params, State
from ._fields import place
from ._random import leaf_key
from .stored import is_stored


def convert(state: State, rule_from: AnyRule, rule_to: AnyRule, params: Params | None = None) -> State:
    """The state of `rule_to` that continues a state of `rule_from`.

    Arrays are matched by the field that holds them and the parameter they belong to, wherever they
    stand: formats, chains and classes may differ, so that optax's states become ours. What `rule_to` has
    and `rule_from` has not is an error. What `stored` itself keeps is an exception: its step and the
    residuals of `split` go along where both have them and start afresh elsewhere, its seed is `rule_to`'s.

    Convert a checkpoint by restoring it as a state of the rule that wrote it.

    Args:
      state: of `rule_from`; not under `zero` or `offload`.
      rule_from: the rule that made it.
      rule_to: the rule that is to go on.
      params: the parameters, or their shapes; by default they are found in the state: a field with
        whose shapes `rule_from.init` gives this state.

    Raises:
      ValueError: a field of the new state is not in the old one, or twice; the state is not one of
        `rule_from`; parameters are not found.

    >>> params = {"w": jnp.ones((64, 128))}
    >>> stored = jl.stored(jl.adam(1e-3), mu=jl.int8(), nu=jl.int8())
    >>> state = jl.convert(optax.adam(1e-3).init(params), optax.adam(1e-3), stored)
    >>> state.inner[0].nu["w"].codes.dtype.name
    'uint8'
    """
    shapes = _found_params(state, rule_from) if params is None else params
    _check_state(state, rule_from, shapes)
    keys = [path for path, _ in jax.tree_util.tree_flatten_with_path(shapes)[0]]
    old: dict[Any, list[Any]] = collections.defaultdict(list)
    for name, x in _named(state, keys):
        old[name].append(x.format.decode(x) if is_encoded(x) else x)
    target = rule_to.init(_zeros(shapes))
    nodes, treedef = jax.tree.flatten(target, is_leaf=is_encoded)
    seen: collections.Counter[Any] = collections.Counter()
    names = [name for name, _ in _named(target, keys)]
    new, problems = [], Problems("convert")
    for name, like in zip(names, nodes, strict=True):
        candidates, turn = old[name], seen[name]
        seen[name] += 1
        wrong = _mismatch(name[0], candidates[turn:], like, len(candidates), names.count(name))
        if not hasattr(like, "dtype") or name[0] == _OWN + "seed" or (wrong and name[0].startswith(_OWN)):
            new.append(like)
        elif wrong:
            problems.add(wrong, at=name[1] or "the root")
        else:
            new.append(_like(candidates[turn], like, name))
    problems.raise_if_any()
    return treedef.unflatten(new)


_OWN = "stored: "  # before the names of fields that `stored` has for itself


def _mismatch(field: str, found: list[Any], like: Any, count: int, wanted: int) -> str:
    """Why the first of `found` cannot become a field like `like`; empty where it can."""
    if count != wanted:
        return f"the old state has {count} fields {field!r}, the new one {wanted}"
    got, shape = _shape(found[0]), _shape(like)
    return "" if got == shape else f"{field} has shape {got}, not {shape}"


def _named(tree: State, keys: list[Any]) -> list[tuple[tuple[str, str], Any]]:
    """(field, what comes below it) of each array."""
    nodes = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_stored)[0]
    own = {
        (*path, jax.tree_util.GetAttrKey(name))
        for path, node in nodes
        if is_stored(node)
        for name in ("step", "seed", "residuals")
    }
    found = []
    for path, x in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_encoded)[0]:
        field, owner = place(path, keys)
        if any(path[:n] in own for n in range(1, len(path) + 1)):
            field = _OWN + field
        found.append(((field, "" if owner is None else path_string(keys[owner])), x))
    return found


def _shape(x: Any) -> tuple[int, ...]:
    return tuple(x.codes.shape if is_encoded(x) else jnp.shape(x))


def _like(x: Any, like: Any, name: tuple[str, str]) -> Any:
    x = jnp.asarray(x)
    if is_encoded(like):
        return like.format.encode(x.astype(like.dtype), leaf_key(jnp.uint32(0), "/".join(name), jnp.int32(0)))
    return x.astype(like.dtype)


def _zeros(params: Params) -> Params:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), params)


def _shape_of(tree: Any) -> Any:
    return jax.tree.structure(tree), [(tuple(x.shape), x.dtype) for x in jax.tree.leaves(tree)]


def _check_state(state: State, rule: AnyRule, params: Params) -> None:
    wanted = jax.eval_shape(rule.init, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params))
    if _shape_of(wanted) != _shape_of(state):
        raise ValueError(
            message(
                "convert",
                "the state is not one of rule_from for these parameters",
                do="Pass both as they are",
            )
        )


def _found_params(state: State, rule: AnyRule) -> Params:
    """A part of the state with the shapes of the parameters."""
    decoded = jax.tree.map(
        lambda x: jax.eval_shape(x.format.decode, x) if is_encoded(x) else x, state, is_leaf=is_encoded
    )
    for part in _parts(decoded):
        try:
            _check_state(state, rule, part)
        except Exception:  # whatever a rule says of parameters that are none
            continue
        return part
    raise ValueError(message("convert", "no part of the state has the parameters' shapes", do="Pass params="))


def _parts(tree: Any) -> list[Any]:
    """Every field of every NamedTuple in a state, the outermost first."""
    found: list[Any] = []
    pending = [tree]
    while pending:
        node = pending.pop(0)
        if isinstance(node, tuple):
            if hasattr(node, "_fields"):
                found.extend(node)
            pending.extend(node)
        elif isinstance(node, dict):
            pending.extend(node.values())
    return found
