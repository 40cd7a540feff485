"""Rules whose numbers are in their state."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from .._errors import message
from .._numerics import safe_increment
from .._states import check_state, explained
from .._types import Params, Rule, Updates, make_rule
from ._factory import Factory
from ._state import Knobs, WithHyperparamsState, knobs_of, scheduled_value


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
    made = Factory(factory, args, values)
    knobs = Knobs(made.who, tuple((n, made.ranges[n].allowed) for n in made.numbers), tuple(made.schedules))

    def init(params: Params) -> WithHyperparamsState:
        count = jnp.zeros((), jnp.int32) if made.schedules else None
        start = {name: made.start(name) for name in made.numbers}
        current = {name: x.of for name, x in start.items()}
        inner = made.rule(knobs_of(current, start)).init(params)
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
            current[name] = scheduled_value(made.who, name, schedule, state.count)
        values = knobs_of(current, state.exact)
        rule = made.rule(values)
        with explained("with_hyperparams", rule.init, state.inner, updates, params):
            changes, inner = rule.update(updates, state.inner, params, **extra)
        count = None if state.count is None else safe_increment(state.count)
        return changes, WithHyperparamsState(current, state.exact, count, inner, knobs)

    return make_rule(init, update)
