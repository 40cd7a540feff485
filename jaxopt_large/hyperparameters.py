"""Hyper-parameters in the state: read, set between steps without compiling anew, driven by schedules."""

import dataclasses
import inspect
import numbers
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from ._errors import (
    NUMBER,
    SCHEDULED,
    Problems,
    Range,
    check_hyperparameters,
    is_rule,
    message,
    number_problem,
)
from ._hyperparameters import domains
from ._knob import Knob, halves, log_of
from ._nodes import StateNode, answers, is_past
from ._numerics import safe_increment
from ._paths import matches, nearest
from ._states import check_state, explained
from ._static import StaticNode
from ._types import Params, Rule, State, Updates, make_rule
from .rules import RULES
from .rules.learning_rate import ScaleByScheduleState

__all__ = ["hyperparams", "learning_rate", "set_hyperparams", "with_hyperparams"]


class Exact(NamedTuple):
    """What a float32 lacks of the number that was given."""

    of: Float[Array, ""]  # the float32 to which the rest belongs; for others it does not count
    low: Float[Array, ""]  # number - of
    log: Float[Array, ""]  # its natural logarithm
    log_low: Float[Array, ""]  # and the rest of that


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Knobs(StaticNode):
    """Which hyper-parameters there are, and what they may be."""

    who: str
    allowed: tuple[tuple[str, str], ...]  # name -> the words for its range
    scheduled: tuple[str, ...]


class _Fields(NamedTuple):
    hyperparams: dict[str, Float[Array, ""]]  # float32, each as it was used last
    exact: dict[str, Exact]
    count: Int[Array, ""] | None  # steps taken, where a schedule asks for them
    inner: State
    knobs: Knobs


class WithHyperparamsState(_Fields, StateNode):
    """State of `with_hyperparams`."""

    __slots__ = ()
    own: ClassVar[tuple[str, ...]] = ("hyperparams", "exact", "count")


def with_hyperparams(factory: Callable[..., Any], /, *args: Any, **values: Any) -> Rule:
    """A rule whose numbers are in its state: `with_hyperparams(jl.adamw, learning_rate=3e-4)`.

    Learning rate, decays, weight decay, eps and whatever else is a number become float32 leaves of the state,
    those that are not given with their defaults. `hyperparams(state)` reads them, and
    `set_hyperparams(state, learning_rate=1e-4)` gives a state with others: the step that was compiled takes
    it. As long as nothing is set, and after a number was set, the updates are those of `factory` with that
    number: what float32 lacks of it is kept beside it.

    Whole numbers of which shapes depend, flags, names, dtypes, masks and other rules stay what they are. Of a
    function of yours a whole number does too, unless its annotation says float: write 2.0 where it may turn.
    A factory cannot decide anything by a number that turns (`if weight_decay: ...`); that is an error.

    Args:
      factory: makes a rule: one of this library, of optax, or a function of yours.
      *args: its arguments.
      **values: those by name. A function is a schedule where a number may be one; it is called with
        the number of steps taken before this one.

    Returns:
      The rule; its state is `WithHyperparamsState(hyperparams, exact, count, inner, knobs)`.

    Raises:
      TypeError: factory is no function, or has no such arguments.
      ValueError: a number is out of range.

    >>> rule, params = jl.with_hyperparams(jl.sgd, learning_rate=0.5), jnp.float32(1.0)
    >>> state = jl.set_hyperparams(rule.init(params), learning_rate=0.25)
    >>> updates, state = rule.update(jnp.float32(2.0), state, params)
    >>> float(updates), float(jl.hyperparams(state)["learning_rate"])
    (-0.5, 0.25)
    """
    made = _Factory(factory, args, values)
    knobs = Knobs(made.who, tuple((n, made.ranges[n].allowed) for n in made.numbers), tuple(made.schedules))

    def init(params: Params) -> WithHyperparamsState:
        count = jnp.zeros((), jnp.int32) if made.schedules else None
        start = {name: made.start(name) for name in made.numbers}
        current = {name: x.of for name, x in start.items()}
        inner = made.rule(_knobs_of(current, start)).init(params)
        # a buffer each, to be donated
        return WithHyperparamsState({n: jnp.array(x) for n, x in current.items()}, start, count, inner, knobs)

    def update(
        updates: Updates, state: WithHyperparamsState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, WithHyperparamsState]:
        check_state("with_hyperparams", WithHyperparamsState, state)
        if state.knobs != knobs:
            wrong = f"the state is of {state.knobs.who}({', '.join(n for n, _ in state.knobs.allowed)})"
            do = "Pass what this rule's init or update has returned"
            raise ValueError(message("with_hyperparams", wrong, do=do))
        current = dict(state.hyperparams)
        for name, schedule in made.schedules.items():
            current[name] = _scheduled(made.who, name, schedule, state.count)
        values = _knobs_of(current, state.exact)
        rule = made.rule(values)
        with explained("with_hyperparams", rule.init, state.inner, updates, params):
            changes, inner = rule.update(updates, state.inner, params, **extra)
        count = None if state.count is None else safe_increment(state.count)
        return changes, WithHyperparamsState(current, state.exact, count, inner, knobs)

    return make_rule(init, update)


class _Factory:
    """A function that makes rules, and its arguments: numbers, schedules, and all else.

    Attributes:
      who: its name.
      numbers: name -> the number that it starts with; None of one that a schedule gives.
      ranges: name -> what such a number may be.
      schedules: name -> schedule.
    """

    def __init__(self, factory: Any, args: tuple[Any, ...], values: dict[str, Any]):
        if not callable(factory) or is_rule(factory):
            do = "Pass the function, as in with_hyperparams(jl.adamw, learning_rate=3e-4)"
            raise TypeError(message("with_hyperparams", f"factory makes no rules, got {factory!r}", do=do))
        self._make = factory
        inner = getattr(factory, "func", factory)  # of a partial function
        self.who = getattr(inner, "__name__", type(inner).__name__)
        parameters = inspect.signature(factory).parameters
        unnamed = [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL)]
        if unnamed:
            wrong = f"{self.who} has arguments without a name, got {', '.join(unnamed)}"
            do = "Pass a function whose arguments all have names"
            raise TypeError(message("with_hyperparams", wrong, do=do))
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        problems = Problems("with_hyperparams")
        for name in values.keys() - parameters.keys() if not open_ended else ():
            there = ", ".join(parameters)
            problems.add(f"{self.who} has no hyper-parameter {name!r}", allowed=f"it has {there}")
        problems.raise_if_any(TypeError)
        values = {**inspect.signature(factory).bind_partial(*args).arguments, **values}
        bound = getattr(factory, "keywords", {})  # of a partial function: they are left out
        free = {n: p for n, p in parameters.items() if n not in bound}
        defaults = {n: p.default for n, p in free.items() if p.default is not p.empty}
        self.ranges = _ranges(factory)
        self.numbers: dict[str, Any] = {}
        self.schedules: dict[str, Callable[..., Any]] = {}
        self._fixed: dict[str, Any] = {}
        whole, order = {**defaults, **values}, list(parameters)
        for name in sorted(whole, key=lambda name: order.index(name) if name in order else len(order)):
            self._sort(name, whole[name], parameters.get(name))
        self._check(whole)

    def _check(self, whole: dict[str, Any]) -> None:
        """Raises for numbers out of range, and for arguments of which none turns; makes the rule once."""
        types, wrong = Problems("with_hyperparams"), Problems("with_hyperparams")
        for name, value in self.numbers.items():
            if value is not None and not self._is_ours:  # ours say so themselves
                number_problem(name, value, self.ranges[name], types, wrong)
        if not self.numbers:
            got = ", ".join(whole) or "no arguments"
            do = "Give one, such as learning_rate=3e-4"
            wrong.add(f"{self.who} has no number that could turn, got {got}", do=do)
        types.raise_if_any(TypeError)
        wrong.raise_if_any()
        plain = {name: value for name, value in self.numbers.items() if value is not None}
        self._make(**self._fixed, **plain, **self._first_values)

    @property
    def _first_values(self) -> dict[str, Any]:
        """What schedules begin with, for the check at construction."""
        start = jnp.zeros((), jnp.int32)
        return {name: _scheduled(self.who, name, s, start) for name, s in self.schedules.items()}

    def rule(self, values: dict[str, Any]) -> Rule:
        """The rule with these numbers."""
        return optax.with_extra_args_support(self._make(**self._fixed, **values))

    def start(self, name: str) -> Exact:
        """What the state begins with."""
        value = self.numbers[name]
        if name in self.schedules:
            return _exact(_scheduled(self.who, name, self.schedules[name], jnp.zeros((), jnp.int32)))
        return _exact(value)

    def _sort(self, name: str, value: Any, parameter: Any) -> None:
        """A number that can turn, a schedule of one, or what stays as it is."""
        domain = self.ranges.get(name, None if self._is_ours else NUMBER)
        if domain is None or domain.is_fixed:
            self._fixed[name] = value
        elif callable(value) and self._may_follow(name, value, parameter):
            self.schedules[name], self.numbers[name], self.ranges[name] = value, None, domain
        elif _is_number(value, whole=name in self.ranges or _says_float(parameter)):
            self.numbers[name], self.ranges[name] = value, domain
        else:
            self._fixed[name] = value

    def _may_follow(self, name: str, value: Any, parameter: Any) -> bool:
        """May a function be a schedule there? Others take functions for masks, too."""
        annotation = getattr(parameter, "annotation", inspect.Parameter.empty)
        if annotation is not inspect.Parameter.empty and not self._is_ours:
            return "Schedule" in str(annotation)
        if self._is_ours:
            return name in self.ranges
        try:  # a function of a user's, who says nothing: is it one of the step?
            found = value(jnp.zeros((), jnp.int32))
        except Exception:
            return False
        return jnp.shape(found) == () and not isinstance(found, bool)

    @property
    def _is_ours(self) -> bool:
        made = getattr(self._make, "func", self._make)
        return getattr(made, "__module__", "").startswith(__name__.partition(".")[0] + ".")


def _ranges(factory: Any) -> dict[str, Range]:
    """What the numbers of a factory may be; optax's are what ours of the same name are."""
    ours = factory = getattr(factory, "func", factory)
    if getattr(factory, "__module__", "").startswith("optax."):
        ours = RULES.get(getattr(factory, "__name__", ""), factory)
    try:
        found = domains(ours)
    except Exception:  # whatever the annotations of others do not resolve to
        return {}
    there = inspect.signature(factory).parameters
    return {name: d for name, d in found.items() if isinstance(d, Range) and name in there}


def _is_number(value: Any, *, whole: bool) -> bool:
    """Is it a number that can turn? Whole ones are where one with a fraction could stand, too."""
    if isinstance(value, bool | np.bool_) or value is None:
        return False
    if isinstance(value, int | np.integer):
        return whole
    if isinstance(value, numbers.Real | np.floating):
        return True
    dtype = getattr(value, "dtype", None)
    if dtype is None or jnp.shape(value) != ():
        return False
    return jnp.issubdtype(dtype, jnp.floating) or (whole and jnp.issubdtype(dtype, jnp.integer))


def _says_float(parameter: Any) -> bool:
    told = str(getattr(parameter, "annotation", ""))
    return any(word in told for word in ("float", "ArrayLike", "Scalar", "Numeric", "Schedule"))


# --- what is kept of a number -------------------------------------------------------------------------


def _exact(value: Any) -> Exact:
    """A number as the state has it: in float64 on the host, if it is Python's or NumPy's."""
    if isinstance(value, numbers.Real | np.generic) and not hasattr(value, "aval"):
        exact = float(value)
        return Exact(*(jnp.asarray(x) for x in (*halves(exact), *_halves_of_log(exact))))
    high = jnp.asarray(value).astype(jnp.float32)
    return Exact(high, jnp.zeros_like(high), jnp.log1p(high - 1.0), jnp.zeros_like(high))


def _halves_of_log(value: float) -> tuple[np.float32, np.float32]:
    return halves(log_of(value))


def _knobs_of(current: Mapping[str, Any], exact: Mapping[str, Exact]) -> dict[str, Knob]:
    """The numbers as a rule takes them: with what is known of them, if it is still of them."""
    found = {}
    for name, value in current.items():
        known = exact[name]
        same = known.of == value
        zero = jnp.zeros((), jnp.float32)
        log = Knob(jnp.where(same, known.log, jnp.log1p(value - 1.0)), jnp.where(same, known.log_low, zero))
        found[name] = Knob(value, jnp.where(same, known.low, zero), log)
    return found


def _scheduled(who: str, name: str, schedule: Callable[..., Any], count: Any) -> Float[Array, ""]:
    value = schedule(count)
    check_hyperparameters(who, **{name: (value, SCHEDULED)})
    return jnp.asarray(value).astype(jnp.float32)


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
            made = _exact(value)
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
