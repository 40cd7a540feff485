"""States of one rule as states of another: float32 and stored, optax's and ours."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._encoded import is_encoded
from .._errors import Problems, check_rule, message
from .._nodes import own_arrays
from .._owners import Owners, field_and_owner
from .._paths import leaf_paths, path_string
from .._states import parting
from .._types import AnyRule, Params, State, as_leaves
from ..storage.random import leaf_key
from ._identity import Identity, matched
from ._matching import RestoreReport


def convert(
    state: State,
    rule_from: AnyRule,
    rule_to: AnyRule,
    params: Params | None = None,
    *,
    report: bool = False,
) -> Any:
    """The state of `rule_to` that continues a state of `rule_from`.

    Arrays are matched by the field that holds them and the parameter they belong to, wherever they
    stand: formats, chains, groups and classes may differ, so that optax's states become ours. Of several
    that are the same in this sense, those of one group of a `partition` belong together, then they match in
    order where there are as many in both. What only `rule_to` has starts as its `init` starts it, what only
    `rule_from` has is dropped, as in `restore_changed`; `report=True` tells. So a group that was frozen
    begins to learn:

        before = jl.partition({"*head*": jl.adamw(1e-3), "*": jl.freeze()})
        after = jl.partition({"*head*": jl.adamw(1e-3), "*": jl.adamw(1e-4)})
        state = jl.convert(state, before, after, params)

    (Leaves that join a group which has counted steps already share its bias correction: a group of their
    own, as here, starts its own.) What `stored` itself keeps goes along where both have it: its step and the
    residuals of `split`; its seed is `rule_to`'s.

    Convert a checkpoint by restoring it as a state of the rule that wrote it.

    Args:
      state: of `rule_from`; not under `zero` or `offload`.
      rule_from: the rule that made it.
      rule_to: the rule that is to go on.
      params: the parameters, or their shapes; by default they are found in the state: a field with
        whose shapes `rule_from.init` gives this state. Rules that start from the values need them.
      report: return `(state, RestoreReport)`.

    Raises:
      ValueError: nothing that `rule_to` keeps for parameters is in the old state; the state is not one of
        `rule_from`; parameters are not found; moments come together whose steps were counted apart.
      TypeError: one of the rules is none.

    >>> params = {"w": jnp.ones((64, 128))}
    >>> stored = jl.stored(jl.adam(1e-3), mu=jl.int8(), nu=jl.int8())
    >>> state = jl.convert(optax.adam(1e-3).init(params), optax.adam(1e-3), stored)
    >>> state.inner[0].nu["w"].codes.dtype.name
    'uint8'
    >>> begun = jl.skip_nonfinite(jl.adam(1e-3))
    >>> _, told = jl.convert(optax.adam(1e-3).init(params), optax.adam(1e-3), begun, report=True)
    >>> print(told)
    kept 3, new 1, dropped 0
      new        skipped
    """
    check_rule("convert", rule_from, "rule_from")
    check_rule("convert", rule_to, "rule_to")
    shapes = _found_params(state, rule_from) if params is None else as_leaves(params)
    _check_state(state, rule_from, shapes)
    keys = [path for path, _ in jax.tree_util.tree_flatten_with_path(shapes)[0]]
    target = rule_to.init(_concrete(shapes))
    names = leaf_paths(shapes)
    saved, wanted = _named(state, keys, names), _named(target, keys, names)
    kept, ambiguous = matched({a.at: a.identity for a in saved}, {a.at: a.identity for a in wanted})
    old = {a.at: a for a in saved}
    wrong = Problems("convert")
    for a in wanted:
        origin = old.get(kept.get(a.at, ""))
        if a.field == _OWN + "seed":
            origin = None
        if origin is not None and _shape(origin.array) != _shape(a.array):
            found = f"{a.field} has shape {_shape(origin.array)}, not {_shape(a.array)}"
            wrong.add(found, at=a.path or "the root")
            origin = None
        elif origin is None and not a.field.startswith(_OWN):
            counts = [sum(x.field == a.field and x.path == a.path for x in xs) for xs in (saved, wanted)]
            found = f"the old state has {counts[0]} fields {a.field!r}, the new one {counts[1]}"
            wrong.add(found, at=a.path or "the root")
        if origin is None:
            kept.pop(a.at, None)
    _count_on(saved, wanted, kept)
    new = [
        _like(old[kept[a.at]].array, a.array, (a.field, a.path)) if a.at in kept else a.array for a in wanted
    ]
    of_params = [a for a in wanted if _shape(a.array)]
    if of_params and not any(a.at in kept for a in of_params):
        wrong.raise_if_any()
    made = jax.tree.structure(target, is_leaf=is_encoded).unflatten(new)
    if not report:
        return made
    taken = set(kept.values())
    return made, RestoreReport(
        kept,
        new=tuple(a.at for a in wanted if a.at not in kept),
        dropped=tuple(a.at for a in saved if a.at not in taken),
        ambiguous={name: places for name, places in ambiguous.items() if name not in kept},
    )


_OWN = "own: "  # before the names of fields that a wrapper has for itself


class _Named(NamedTuple):
    """An array of a state.

    Attributes:
      at: its path.
      field: that holds it.
      path: of the parameter that it belongs to, or "".
      node: the path of what has the field.
      identity: field and path, and the groups around it.
      array: itself, encoded or not.
    """

    at: str
    field: str
    path: str
    node: tuple[Any, ...]
    identity: Identity
    array: Any


def _named(tree: State, keys: list[Any], names: list[str]) -> list[_Named]:
    own, at = own_arrays(tree), 0
    owners, found = Owners(keys), []
    for path, x in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_encoded)[0]:
        field, owner = field_and_owner(path, keys, owners)
        if own[at]:
            field = _OWN + field
        at += len(jax.tree.leaves(x))
        below = () if owner is None else keys[owner]
        around = path[: len(path) - len(below)]
        groups = tuple(str(k.key) for k in around if isinstance(k, jax.tree_util.DictKey))
        name = "" if owner is None else names[owner]
        found.append(
            _Named(path_string(path), field, name, around[:-1], Identity(f"{field}/{name}", groups), x)
        )
    return found


def _count_on(saved: list[_Named], wanted: list[_Named], kept: dict[str, str]) -> None:
    """Lets counters count on from where the moments beside them come from.

    What moments are divided by depends on the count: without it they start anew. Moments that join others
    share the count that is there.

    Raises:
      ValueError: the moments come from counters that differ, and the counter from nowhere.
    """
    old = {a.at: a for a in saved}
    counters = {(a.node, a.field): a for a in saved if not a.path}
    moments: dict[Any, list[_Named]] = {}
    counts: dict[Any, list[_Named]] = {}
    for a in wanted:
        if not a.path and not a.field.startswith(_OWN):
            counts.setdefault(a.node, []).append(a)
        elif a.path and a.at in kept:
            moments.setdefault(a.node, []).append(a)
    problems = Problems("convert")
    for node, beside in moments.items():
        nodes = {old[kept[a.at]].node for a in beside}
        for a in counts.get(node, []):
            found = [counters[n, a.field] for n in nodes if (n, a.field) in counters]
            origins = [x for x in found if _shape(x.array) == _shape(a.array)]
            differ = any(bool(jnp.any(x.array != origins[0].array)) for x in origins)
            if len(origins) == len(nodes) and not differ:
                kept[a.at] = origins[0].at
            elif a.at in kept:
                continue
            elif len(origins) < len(nodes):
                for x in (*beside, *counts[node]):
                    kept.pop(x.at, None)
                break
            else:
                values = ", ".join(f"{x.array} at {x.at}" for x in sorted(origins, key=lambda x: x.at))
                problems.add(f"moments that were counted apart come together, {values}", at=a.at)
    problems.raise_if_any()


def _shape(x: Any) -> tuple[int, ...]:
    return tuple(x.codes.shape if is_encoded(x) else jnp.shape(x))


def _like(x: Any, like: Any, name: tuple[str, str]) -> Any:
    x = x.format.decode(x) if is_encoded(x) else jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jax.dtypes.extended):  # a random key
        return x
    if is_encoded(like):
        return like.format.encode(x.astype(like.dtype), leaf_key(jnp.uint32(0), "/".join(name), jnp.int32(0)))
    return x.astype(like.dtype)


def _concrete(params: Params) -> Params:
    """The parameters; zeros where there are only shapes."""
    return jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x, params
    )


def _check_state(state: State, rule: AnyRule, params: Params) -> None:
    wanted = jax.eval_shape(rule.init, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params))
    where = parting(wanted, state, shapes=True)
    if where is not None:
        raise ValueError(
            message(
                "convert",
                f"the state is not one of rule_from for these parameters: {where}",
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
