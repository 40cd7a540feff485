"""Weight decay beside any rule: of the learning rate's schedule or its own, everywhere or cautiously."""

from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array

from .._hyperparameters import Mask, Rate, checked
from .._numerics import as_scalar, like, times
from .._types import Rule
from .._wrapped import Wrapped, followed_by
from ..leafwise import Stage, count, lift
from ..rules.learning_rate import ScaleByScheduleState, checked_rate

__all__ = ["decoupled"]


class DecoupledState(Wrapped):
    """State of `decoupled`."""


@checked
def decoupled(
    rule: Any,
    weight_decay: Rate,
    mask: Mask = None,
    *,
    learning_rate: Rate | None = None,
    cautious: bool = False,
) -> Rule:
    r"""Weight decay after a rule's step: $u_t \leftarrow u_t - \eta_t \lambda_t \theta_t$.

    By default $\eta_t$ is 1: the decay does not depend on the learning rate, so that one can be tuned without
    the other. With the rule's learning rate it is that of `adamw`.

    Args:
      rule: any rule; give it no decay of its own.
      weight_decay: $\lambda$, a number >= 0, an array of shape (), or a schedule.
      mask: which leaves decay: a glob over their paths, a tree of booleans, a prefix of one, or a function
        from the parameters to one of these; all of them by default.
      learning_rate: $\eta$, a number >= 0 or a schedule; None for 1.
      cautious: only where the step goes towards 0 anyway, $u_t \theta_t < 0$.

    Returns:
      The rule; its `update` needs `params`; its state is `DecoupledState(inner, own)`.

    Raises:
      TypeError: rule is not a rule.
      ValueError: a value is out of range.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101, section 2, for a decay that is independent of the
    rate; Chen et al. 2025, arXiv:2510.12402, for `cautious`.

    >>> rule, params = jl.decoupled(jl.sgd(0.1), 0.25), jnp.float32(4.0)
    >>> updates, _ = rule.update(jnp.float32(10.0), rule.init(params), params)
    >>> float(updates)
    -2.0
    """

    def size(kept: ScaleByScheduleState) -> Array:
        steps = getattr(kept, "count", None)
        rate = as_scalar(1.0) if learning_rate is None else checked_rate("decoupled", learning_rate, steps)
        return rate * checked_rate("decoupled", weight_decay, steps)

    def step(size: Array, u: Array, p: Array, kept: Any) -> tuple[Array, Any]:
        decay = times(like(size, u), p)
        if cautious:
            decay = jnp.where((jnp.sign(u) * jnp.sign(p).conj()).real < 0, decay, jnp.zeros((), p.dtype))
        return u - decay, kept

    is_scheduled = callable(weight_decay) or callable(learning_rate)
    kept = ScaleByScheduleState(count()) if is_scheduled else optax.EmptyState()
    stage = lift("decoupled", Stage(step, kept, size, needs_params=True, mask=mask), chained=False)
    return followed_by("decoupled", rule, stage, DecoupledState)
