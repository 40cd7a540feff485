"""What wrappers share: the rule that they are around, and a lifted stage after it."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from ._errors import check_rule
from ._order import Wrapper, inside
from ._states import check_state, explained
from ._types import AnyRule, Params, Rule, State, Updates, make_rule


class Inner:
    """The rule that a wrapper is around.

    Args:
      who: the wrapper's name, for errors.
      rule: any rule.
      each_step: must the rule move at each step? What moves at some steps only is then refused.

    Raises:
      TypeError: rule is not a rule.
    """

    def __init__(self, who: str, rule: AnyRule, *, each_step: bool = True):
        check_rule(who, rule)
        self._who, self._each_step = who, each_step
        self._rule = optax.with_extra_args_support(rule)

    def init(self, params: Params) -> State:
        """Its state."""
        with inside(Wrapper.EACH_STEP) if self._each_step else contextlib.nullcontext():
            return self._rule.init(params)

    def update(
        self, updates: Updates, state: State, params: Params | None, extra: dict[str, Any]
    ) -> tuple[Updates, State]:
        """Its updates and its new state."""
        with self.explained(updates, state, params):
            return self._rule.update(updates, state, params, **extra)

    def explained(
        self, updates: Updates, state: State, params: Params | None
    ) -> contextlib.AbstractContextManager[None]:
        """Errors inside that come of the rule's state, or of missing gradients, say so."""
        return explained(self._who, self._rule.init, state, updates, params)


def followed_by(
    who: str,
    rule: AnyRule,
    stage: Rule,
    kind: Any,
    beside: Callable[[Updates, Params], Any] | None = None,
    *,
    each_step: bool = True,
) -> Rule:
    """A rule and what is made of its updates.

    Args:
      who: the wrapper's name, for errors.
      rule: any rule.
      stage: a lifted rule; it gets the updates of `rule`.
      kind: the NamedTuple of both states: (inner, own).
      beside: from the gradients and parameters, what the stage gets for parameters; by default those.
      each_step: must the rule move at each step?

    Raises:
      TypeError: rule is not a rule.
    """
    wrapped = Inner(who, rule, each_step=each_step)

    def init(params: Params) -> Any:
        return kind(wrapped.init(params), stage.init(params))

    def update(
        updates: Updates, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, Any]:
        check_state(who, kind, state)
        made, inner = wrapped.update(updates, state.inner, params, extra)
        own = params if beside is None else beside(updates, params)
        made, kept = stage.update(made, state[1], own)
        return made, kind(inner, kept)

    return make_rule(init, update)


class Wrapped(NamedTuple):
    """State of a wrapper that keeps nothing of its own."""

    inner: State  # the wrapped rule's
    own: State  # empty, but for a schedule
