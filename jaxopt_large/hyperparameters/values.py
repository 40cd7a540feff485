"""Hyper-parameters in a state, wherever in it they are: read and set."""

import numbers
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import Problems, Range, message, number_problem
from .._nodes import StateNode, answers, is_past
from .._paths import matches, nearest
from .._types import State
from ..rules.learning_rate import ScaleByScheduleState
from ._state import Exact, WithHyperparamsState, exact_of

_FLOAT32 = float(np.finfo(np.float32).max)
_has_groups = answers(StateNode.grouped)

# --- reading and setting ------------------------------------------------------------------------------


def hyperparams(state: State) -> dict[str, Any]:
    """The hyper-parameters in a state: name -> float32 scalar, as they were used in the last step.

    Args:
      state: of a rule that has `with_hyperparams` somewhere in it, wrapped or not. Inside `partition` each
        group has a dictionary of its own. Where a chain has two of a name, they are "adamw.eps" and
        "clip_by_global_norm.eps".

    Raises:
      ValueError: there are none.

    >>> rule = jl.partition({"w": jl.with_hyperparams(jl.sgd, learning_rate=0.5), "*": jl.freeze()})
    >>> found = jl.hyperparams(rule.init({"w": jnp.ones(2), "b": jnp.ones(2)}))
    >>> float(found["w"]["learning_rate"])
    0.5
    """
    found: dict[str, Any] = {}
    for place in _places(state, "hyperparams"):
        into = found
        for group in place.groups:
            into = into.setdefault(group, {})
        into[place.shown] = place.value
    return found


def set_hyperparams(state: State, **values: Any) -> State:
    """A state with other hyper-parameters; what is not named stays as it is.

    Args:
      state: of a rule that has `with_hyperparams` somewhere in it.
      **values: name -> number or scalar array, for every group that has the name; or a dictionary, group or
        glob over groups -> number.

    Returns:
      A new state of the same shapes, dtypes and shardings: a compiled step takes it.

    Raises:
      ValueError: no such hyper-parameter or group; a Python number is out of range; a schedule gives it.
      TypeError: a value is not a number.

    >>> rule, params = jl.with_hyperparams(jl.adam, learning_rate=1e-3), jnp.ones(2)
    >>> state = jl.set_hyperparams(rule.init(params), learning_rate=2e-3, b1=0.8)
    >>> round(float(jl.hyperparams(state)["b1"]), 6)
    0.8
    """
    who = "set_hyperparams"
    places, types, wrong = list(_places(state, who)), Problems(who), Problems(who)
    chosen: dict[int, dict[str, Any]] = {}  # the node's identity -> name -> value
    for name, given in values.items():
        named = [p for p in places if name in (p.name, p.shown)]
        if not named:
            near = f"the nearest are {nearest(name, sorted({p.shown for p in places}))}"
            wrong.add(f"there is no hyper-parameter {name!r}", allowed=near)
        for place, value in _meant(name, given, named, wrong):
            number_problem(name, value, place.range, types, wrong)
            if isinstance(value, numbers.Real) and _FLOAT32 < abs(float(value)) < float("inf"):
                wrong.add(
                    f"{name} is out of range, got {value!r}", allowed=f"at most {_FLOAT32:.7g}, float32's"
                )
            if name in place.node.knobs.scheduled:
                wrong.add(f"{name} is given by a schedule", at=place.where, do="Build the rule without it")
            chosen.setdefault(id(place.node), {})[place.name] = value
    if types.found:
        types.found += wrong.found
    types.raise_if_any(TypeError)
    wrong.raise_if_any()

    def renewed(node: Any) -> Any:
        if not isinstance(node, WithHyperparamsState):
            return node
        current, exact = dict(node.hyperparams), dict(node.exact)
        for name, value in chosen.get(id(node), {}).items():
            made = exact_of(value)
            current[name] = _like(made.of, node.hyperparams[name])
            exact[name] = Exact(*map(_like, made, node.exact[name]))
        return node._replace(hyperparams=current, exact=exact, inner=_mapped(renewed, node.inner))

    return _mapped(renewed, state)


def learning_rate(state: State) -> Any:
    """The learning rate of the last step; before the first one, of that.

    Of `with_hyperparams` it is the number itself that was used. Of a rule with a schedule it is made anew,
    from the steps that the state has counted; a compiler may have rounded the last bit otherwise in the step.

    Args:
      state: of a rule with a schedule, or with `with_hyperparams`; not inside a jitted function.

    Returns:
      A float32 scalar; name of the group -> scalar, where `partition` has several.

    Raises:
      ValueError: no rate is in the state: a constant one is no part of it.

    >>> rule, params = jl.sgd(optax.linear_schedule(1.0, 0.0, 4)), jnp.ones(2)
    >>> _, state = rule.update(params, rule.init(params), params)
    >>> _, state = rule.update(params, state, params)
    >>> float(jl.learning_rate(state))
    0.75
    """
    found: dict[tuple[str, ...], Any] = {}
    for groups, node in _nodes(state, ()):
        rate = _rate_of(node)
        if rate is not None:
            found.setdefault(groups, rate)
    if not found:
        do = "Write with_hyperparams(jl.adamw, learning_rate=...), or give the rule a schedule"
        raise ValueError(message("learning_rate", "no learning rate is in the state", do=do))
    if list(found) == [()]:
        return found[()]
    return {"/".join(groups): rate for groups, rate in found.items()}


def _rate_of(node: Any) -> Any:
    if isinstance(node, WithHyperparamsState):
        return node.hyperparams.get("learning_rate")
    return node.last_value("learning_rate")


class _Place(NamedTuple):
    """A hyper-parameter in a state."""

    groups: tuple[str, ...]
    node: WithHyperparamsState
    name: str
    shown: str
    value: Any

    @property
    def where(self) -> str:
        return "/".join(self.groups)

    @property
    def range(self) -> Range:
        return Range.known[dict(self.node.knobs.allowed)[self.name]]


def _places(state: State, who: str) -> Iterator[_Place]:
    """All hyper-parameters in a state."""
    found = [(g, node) for g, node in _nodes(state, ()) if isinstance(node, WithHyperparamsState)]
    if not found:
        do = "Write with_hyperparams(jl.adamw, learning_rate=...) in the place of jl.adamw(...)"
        raise ValueError(message(who, "the state has no hyper-parameters", do=do))
    names = [(groups, name) for groups, node in found for name in node.hyperparams]
    said: dict[Any, int] = {}
    for groups, node in found:
        for name, value in node.hyperparams.items():
            shown = f"{node.knobs.who}.{name}" if names.count((groups, name)) > 1 else name
            before = said.setdefault((groups, shown), 0)
            said[groups, shown] += 1
            yield _Place(groups, node, name, f"{shown}#{before + 1}" if before else shown, value)


def _nodes(tree: Any, groups: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """States that have hyper-parameters, each with the groups that it is in."""

    def is_one(x: Any) -> bool:
        kinds = WithHyperparamsState | ScaleByScheduleState
        return isinstance(x, kinds) or is_past(x) or _grouped(x) is not None

    for x in jax.tree.leaves(tree, is_leaf=is_one):
        if is_past(x):
            continue
        inside = _grouped(x)
        if inside is not None:
            for group, inner in inside.items():
                yield from _nodes(inner, (*groups, str(group)))
        elif is_one(x):
            yield groups, x
            if isinstance(x, WithHyperparamsState):
                yield from _nodes(x.inner, groups)


def _grouped(x: Any) -> dict[Any, Any] | None:
    """The states of a partition's groups, ours or optax's."""
    if _has_groups(x):
        return dict(x.grouped().values())
    return x.inner_states if isinstance(getattr(x, "inner_states", None), dict) else None


def _mapped(change: Callable[[Any], Any], tree: Any) -> Any:
    return jax.tree.map(change, tree, is_leaf=lambda x: isinstance(x, WithHyperparamsState) or is_past(x))


def _meant(name: str, given: Any, named: list[_Place], wrong: Problems) -> Iterator[tuple[_Place, Any]]:
    """Which places get which value."""
    if not isinstance(given, Mapping):
        yield from ((place, given) for place in named)
        return
    for glob, value in given.items():
        found = [p for p in named if glob == p.where]  # the group of that name, or those that a glob means
        found = found or [p for p in named if matches(glob, p.where)]
        if not found and named:
            near = f"the nearest are {nearest(str(glob), [p.where for p in named])}"
            wrong.add(f"no group with {name} is {glob!r}", allowed=near)
        yield from ((place, value) for place in found)


def _like(value: Any, old: Any) -> Any:
    """A number in the place of another: of its shape, which `pmap` and `vmap` widen, and where that is."""
    if (
        isinstance(value, jax.core.Tracer)
        or isinstance(old, jax.core.Tracer)
        or not isinstance(old, jax.Array)
    ):
        return jnp.broadcast_to(value, jnp.shape(old)).astype(jnp.float32)
    made = np.broadcast_to(np.asarray(value, np.float32), old.shape)
    if not old.committed:  # one that is would be compiled for anew
        return jnp.asarray(made)
    if old.is_fully_addressable:
        return jax.device_put(made, old.sharding)
    return jax.make_array_from_callback(old.shape, old.sharding, made.__getitem__)
