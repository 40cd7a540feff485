"""ASGD: gradient descent, and the mean of its parameters (Polyak and Juditsky 1992; Bottou 2010)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from .._hyperparameters import Mask, NonNegative, Rate, checked
from .._numerics import as_scalar, scalar_dtype, times
from .._types import Rule, Updates
from ..leafwise import Stage, count, first_parameters, joined, lift
from ._registry import rule
from .learning_rate import checked_rate, scale_by_learning_rate
from .weight_decay import decay_of

__all__ = ["asgd", "scale_by_asgd"]


class ScaleByAsgdState(NamedTuple):
    """State of ASGD."""

    count: Int[Array, ""]  # steps taken
    ax: Updates  # mean of the parameters, float32, shapes of the parameters

    def averaged_field(self) -> Updates:
        """What `evaluation_params` reads."""
        return self.ax

    def average(self, kept: Array, p: Array) -> Array:
        """Of a parameter, given its array in that field."""
        del p
        return kept


class _Shared(NamedTuple):
    rate: Array
    decay: Array
    weight: Array  # of the new parameters in the mean


@checked
def scale_by_asgd(
    learning_rate: Rate, lambd: NonNegative = 1e-4, alpha: NonNegative = 0.75, t0: NonNegative = 1e6
) -> Rule:
    r"""The step of ASGD, to be subtracted: see `asgd`.

    Raises:
      ValueError: a value is negative or not finite.
    """

    def shared(kept: ScaleByAsgdState) -> _Shared:
        taken = kept.count.astype(scalar_dtype())
        rate, decay = checked_rate("scale_by_asgd", learning_rate, kept.count), as_scalar(lambd)
        slower = jnp.exp(-as_scalar(alpha) * jnp.log1p(decay * rate * taken))
        return _Shared(rate * slower, decay, 1.0 / jnp.maximum(1.0, taken - as_scalar(t0)))

    def step(shared: _Shared, g: Array, p: Array, kept: ScaleByAsgdState) -> tuple[Array, Any]:
        update = times(shared.rate, g + times(shared.decay, p))
        mean = kept.ax + times(shared.weight, p - update - kept.ax)
        return update, kept._replace(ax=mean)

    state = ScaleByAsgdState(count(), first_parameters())
    return lift("scale_by_asgd", Stage(step, state, shared, needs_params=True), chained=False)


@rule
def asgd(
    learning_rate: Rate,
    lambd: NonNegative = 1e-4,
    alpha: NonNegative = 0.75,
    t0: NonNegative = 1e6,
    weight_decay: Rate = 0.0,
    *,
    mask: Mask = None,
) -> Rule:
    r"""ASGD: a rate that falls slowly, and the mean of the parameters.

    With $t$ steps taken before:

    $$\eta'_t = \eta_t / (1 + \lambda \eta_t t)^{\alpha}, \qquad
      \theta_{t+1} = \theta_t - \eta'_t (g_t + \lambda \theta_t), \qquad
      \bar\theta_{t+1} = \bar\theta_t + (\theta_{t+1} - \bar\theta_t) / \max(1, t - t_0)$$

    `evaluation_params(state, params)` has $\bar\theta$, which is $\theta$ up to step $t_0 + 1$.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      lambd: $\lambda \ge 0$.
      alpha: $\alpha \ge 0$.
      t0: $t_0 \ge 0$, where averaging begins.
      weight_decay: a number >= 0 or a schedule; times the parameter it is added to the gradient.
      mask: which leaves decay, see `adamw`.

    Returns:
      The rule; its `update` needs `params`; its state holds `count` and `ax`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Source: Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging"; Bottou 2010,
    "Large-scale machine learning with stochastic gradient descent"; names and defaults as in PyTorch.

    >>> rule, params = jl.asgd(0.5, lambd=0.0, t0=0.0), jnp.float32(4.0)
    >>> state = rule.init(params)
    >>> for _ in range(3):
    ...     updates, state = rule.update(jnp.float32(2.0), state, params)
    ...     params = params + updates
    >>> float(params), float(state[0].ax)
    (1.0, 1.5)
    """
    direction = scale_by_asgd(learning_rate, lambd, alpha, t0)
    return joined("asgd", *decay_of(weight_decay, mask), direction, scale_by_learning_rate(1.0))
