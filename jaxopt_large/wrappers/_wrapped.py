"""What these wrappers share: a rule, and a lifted stage after it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from .._errors import check_rule
from .._order import Wrapper, inside
from .._states import check_state, explained
from .._types import AnyRule, Params, Rule, State, Updates, make_rule


def followed_by(
    who: str, rule: AnyRule, stage: Rule, kind: Any, beside: Callable[[Updates, Params], Any] | None = None
) -> Rule:
    """A rule and what is made of its updates.

    Args:
      who: the wrapper's name, for errors.
      rule: any rule.
      stage: a lifted rule; it gets the updates of `rule`.
      kind: the NamedTuple of both states: (inner, own).
      beside: from the gradients and parameters, what the stage gets for parameters; by default those.

    Raises:
      TypeError: rule is not a rule.
    """
    check_rule(who, rule)
    wrapped = optax.with_extra_args_support(rule)

    def init(params: Params) -> Any:
        with inside(Wrapper.EACH_STEP):
            return kind(wrapped.init(params), stage.init(params))

    def update(
        updates: Updates, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, Any]:
        check_state(who, kind, state)
        with explained(who, wrapped.init, state.inner, updates, params):
            made, inner = wrapped.update(updates, state.inner, params, **extra)
        own = params if beside is None else beside(updates, params)
        made, kept = stage.update(made, state[1], own)
        return made, kind(inner, kept)

    return make_rule(init, update)


class Wrapped(NamedTuple):
    """State of a wrapper that keeps nothing of its own."""

    inner: State  # the wrapped rule's
    own: State  # empty, but for a schedule
