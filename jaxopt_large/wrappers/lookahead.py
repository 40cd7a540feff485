"""Lookahead: slow parameters that follow fast ones (Zhang et al. 2019)."""

from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from .._errors import Range
from .._hyperparameters import Count, checked
from .._numerics import like, safe_increment, times
from .._types import Rule, State, Updates
from .._wrapped import followed_by
from ..leafwise import Stage, count, first_parameters, lift

__all__ = ["lookahead"]

_SHARE = Range("a number in (0, 1]", lambda x: 0 < x <= 1)


class SlowState(NamedTuple):
    """The slow parameters."""

    count: Int[Array, ""]  # steps taken
    slow: Updates  # float32, shapes of the parameters

    def averaged_field(self) -> Updates:
        """What `evaluation_params` reads."""
        return self.slow

    def average(self, kept: Array, p: Array) -> Array:
        """Of a parameter, given its array in that field."""
        del p
        return kept


class LookaheadState(NamedTuple):
    """State of `lookahead`."""

    inner: State  # the wrapped rule's
    own: SlowState


@checked
def lookahead(rule: Any, sync_period: Count = 5, slow_step_size: Annotated[Any, _SHARE] = 0.5) -> Rule:
    r"""Every k steps, back towards where the k steps began.

    After every $k$-th step, with $\phi$ the slow parameters:

    $$\phi \leftarrow \phi + \alpha (\theta - \phi), \qquad \theta \leftarrow \phi$$

    The slow parameters are kept in the state: the loop sees the fast ones only, as with any rule. (optax's
    `lookahead` has both in the loop.) `evaluation_params(state, params)` has the slow ones.

    Args:
      rule: any rule, which moves the fast parameters. `zero(lookahead(rule), ...)` divides the slow ones too.
      sync_period: $k \ge 1$.
      slow_step_size: $\alpha$ in (0, 1].

    Returns:
      The rule; its `update` needs `params`; its state is `LookaheadState(inner, own)`.

    Raises:
      TypeError: rule is not a rule.
      ValueError: a value is out of range.

    Source: Zhang et al. 2019, arXiv:1907.08610, algorithm 1.

    >>> rule, params = jl.lookahead(jl.sgd(1.0), sync_period=2), jnp.float32(0.0)
    >>> state, seen = rule.init(params), []
    >>> for _ in range(4):
    ...     updates, state = rule.update(jnp.float32(-1.0), state, params)
    ...     params = params + updates
    ...     seen.append(float(params))
    >>> seen
    [1.0, 1.0, 2.0, 2.0]
    """

    def is_due(kept: SlowState) -> Array:
        return (safe_increment(kept.count)) % sync_period == 0

    def step(is_due: Array, u: Array, p: Array, kept: SlowState) -> tuple[Array, Any]:
        slow = kept.slow + times(like(slow_step_size, u), p + u - kept.slow)
        return jnp.where(is_due, slow - p, u), kept._replace(slow=jnp.where(is_due, slow, kept.slow))

    stage = Stage(step, SlowState(count(), first_parameters()), is_due, needs_params=True)
    return followed_by("lookahead", rule, lift("lookahead", stage, chained=False), LookaheadState)
