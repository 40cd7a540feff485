"""A mean of the parameters over the last steps, for evaluation (Polyak and Juditsky 1992)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from .._hyperparameters import Decay, StateDtype, checked
from .._numerics import as_decay, bias_correction, ema, over, safe_increment
from .._types import Rule, State, Updates
from .._wrapped import followed_by
from ..leafwise import Stage, count, lift, shared, zeros

__all__ = ["ema_of_params"]


class MeanState(NamedTuple):
    """The mean."""

    count: Int[Array, ""]  # steps taken
    correction: Array  # 1 - decay ** count
    ema: Updates  # mean of the parameters after each step, not corrected; shapes of the parameters

    def averaged_field(self) -> Updates:
        """What `evaluation_params` reads."""
        return self.ema

    def average(self, kept: Array, p: Array) -> Array:
        """Of a parameter, given its array in that field; before the first step, the parameter."""
        begun = self.count > 0
        divisor = jnp.where(begun, self.correction, 1.0).astype(p.real.dtype)
        return jnp.where(begun, over(kept, divisor), p)


class EmaOfParamsState(NamedTuple):
    """State of `ema_of_params`."""

    inner: State  # the wrapped rule's
    own: MeanState


@checked
def ema_of_params(rule: Any, decay: Decay = 0.999, *, dtype: StateDtype = None) -> Rule:
    r"""Keeps a mean of the parameters: $\bar\theta_t = d \bar\theta_{t-1} + (1-d) \theta_t$.

    `evaluation_params(state, params)` has $\bar\theta_t / (1 - d^t)$. The rule's updates are as they were.

    Args:
      rule: any rule. `zero(ema_of_params(rule), ...)` divides the mean too; outside of `zero` it is whole
        on every device.
      decay: $d$ in [0, 1).
      dtype: floating dtype of the mean; by default float32 (float64 for float64), whatever the parameters':
        in bfloat16 a mean loses what is small beside it.

    Returns:
      The rule; its `update` needs `params`; its state is `EmaOfParamsState(inner, own)`.

    Raises:
      TypeError: rule is not a rule.
      ValueError: decay is outside [0, 1), or the dtype is not a floating one.

    Source: Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging"; the correction
    as in Kingma and Ba 2015, arXiv:1412.6980, section 3.

    >>> rule, params = jl.ema_of_params(jl.sgd(1.0), 0.5), jnp.float32(0.0)
    >>> state = rule.init(params)
    >>> for _ in range(2):  # 1, then 2
    ...     updates, state = rule.update(jnp.float32(-1.0), state, params)
    ...     params = params + updates
    >>> round(float(jl.evaluation_params(state, params)), 4)  # (0.25 * 1 + 0.5 * 2) / 0.75
    1.6667
    """
    d = as_decay(decay)

    def step(given: Any, u: Array, p: Array, kept: MeanState) -> tuple[Array, Any]:
        del given
        return u, kept._replace(ema=ema(kept.ema, p + u, d))

    def corrected(x: Array, kept: MeanState) -> Array:
        return bias_correction(d, safe_increment(kept.count)).astype(x.dtype)

    correction = shared(0.0, next=corrected)
    stage = Stage(step, MeanState(count(), correction, zeros(dtype)), needs_params=True)
    return followed_by("ema_of_params", rule, lift("ema_of_params", stage, chained=False), EmaOfParamsState)
