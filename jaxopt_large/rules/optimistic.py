"""Optimistic gradients, for games: the gradient and how it changed (Daskalakis et al. 2018)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool

from .._hyperparameters import Decay, NonNegative, Rate, StateDtype, checked
from .._numerics import like, times
from .._types import Rule, Updates
from ..leafwise import Stage, is_first_step, joined, lift, zeros
from ._registry import rule
from .adam import scale_by_adam
from .learning_rate import scale_by_learning_rate

__all__ = [
    "optimistic_adam",
    "optimistic_adam_v2",
    "optimistic_gradient_descent",
    "scale_by_optimistic_gradient",
]


class ScaleByOptimisticGradientState(NamedTuple):
    """State of optimistic gradients."""

    is_initial_step: Bool[Array, ""]  # has there been no gradient yet?
    previous_gradient: Updates  # float32, shapes of the parameters


@checked
def scale_by_optimistic_gradient(alpha: NonNegative = 1.0, beta: NonNegative = 1.0) -> Rule:
    r"""The gradient, and more of it where it grows: $u_t = (\alpha + \beta) g_t - \beta g_{t-1}$.

    In the first step $g_{t-1}$ is $g_t$.

    Raises:
      ValueError: a value is negative or not finite.

    Source: Mokhtari et al. 2019, arXiv:1901.08511, equation 6; Daskalakis et al. 2018, arXiv:1711.00141.
    """

    def step(is_first: Array, g: Array, p: Any, kept: ScaleByOptimisticGradientState) -> tuple[Array, Any]:
        del p
        before = jnp.where(is_first, g, kept.previous_gradient)
        a, b = like(alpha, g), like(beta, g)
        return times(a + b, g) - times(b, before), kept._replace(previous_gradient=g)

    state = ScaleByOptimisticGradientState(is_first_step(), zeros())
    stage = Stage(step, state, lambda kept: kept.is_initial_step)
    return lift("scale_by_optimistic_gradient", stage, chained=False)


@rule
def optimistic_gradient_descent(
    learning_rate: Rate, alpha: NonNegative = 1.0, beta: NonNegative = 1.0
) -> Rule:
    r"""Optimistic gradient descent.

    $$\theta_{t+1} = \theta_t - \eta_t \left( (\alpha + \beta) g_t - \beta g_{t-1} \right)$$

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      alpha: $\alpha \ge 0$, weight of the gradient.
      beta: $\beta \ge 0$, weight of its change.

    Returns:
      The rule; its state holds `is_initial_step` and `previous_gradient`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Source: Mokhtari et al. 2019, arXiv:1901.08511, equation 6.

    >>> rule = jl.optimistic_gradient_descent(1.0)
    >>> _, state = rule.update(jnp.float32(2.0), rule.init(jnp.float32(0.0)))
    >>> updates, state = rule.update(jnp.float32(3.0), state)
    >>> float(updates)
    -4.0
    """
    direction = scale_by_optimistic_gradient(alpha, beta)
    return joined("optimistic_gradient_descent", direction, scale_by_learning_rate(learning_rate))


@rule
def optimistic_adam(
    learning_rate: NonNegative,
    optimism: NonNegative | None = None,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: StateDtype = None,
    *,
    nesterov: bool = True,
) -> Rule:
    r"""Optimistic Adam, with a rate that is a number.

    $$\theta_{t+1} = \theta_t - (\eta + o) u_t + o\, u_{t-1}$$

    with $u$ the direction of `nadam`, or of `adam` without Nesterov momentum. `optimistic_adam_v2` has the
    rate outside, where it can be a schedule.

    Args:
      learning_rate: $\eta \ge 0$, a number or an array of shape (), no schedule.
      optimism: $o \ge 0$; by default the rate.
      b1: $b_1$ in [0, 1), decay of the mean gradient.
      b2: $b_2$ in [0, 1), decay of the mean square.
      eps: $\epsilon \ge 0$, outside the root; a coordinate whose denominator is 0 moves by 0.
      eps_root: $\bar\epsilon \ge 0$, inside the root.
      mu_dtype: floating dtype of `mu`; by default float32 (float64 for float64).
      nesterov: Nesterov momentum.

    Returns:
      The rule; its state holds Adam's, `is_initial_step` and `previous_gradient`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Differs: the paper has no Nesterov momentum, and $u_0$ is 0 there; both are as in optax.

    Source: Daskalakis et al. 2018, arXiv:1711.00141, algorithm 1.
    """
    direction = scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)
    ahead = scale_by_optimistic_gradient(learning_rate, learning_rate if optimism is None else optimism)
    return joined("optimistic_adam", direction, ahead, scale_by_learning_rate(1.0))


@rule
def optimistic_adam_v2(
    learning_rate: Rate,
    *,
    alpha: NonNegative = 1.0,
    beta: NonNegative = 1.0,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: StateDtype = None,
    nesterov: bool = True,
) -> Rule:
    r"""Optimistic Adam.

    $$\theta_{t+1} = \theta_t - \eta_t \left( (\alpha + \beta) u_t - \beta u_{t-1} \right)$$

    with $u$ the direction of `nadam`, or of `adam` without Nesterov momentum.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      alpha: $\alpha \ge 0$, weight of the direction.
      beta: $\beta \ge 0$, weight of its change.
      b1: $b_1$ in [0, 1), decay of the mean gradient.
      b2: $b_2$ in [0, 1), decay of the mean square.
      eps: $\epsilon \ge 0$, outside the root; a coordinate whose denominator is 0 moves by 0.
      eps_root: $\bar\epsilon \ge 0$, inside the root.
      mu_dtype: floating dtype of `mu`; by default float32 (float64 for float64).
      nesterov: Nesterov momentum.

    Returns:
      The rule; its state holds Adam's, `is_initial_step` and `previous_gradient`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Differs: the paper has no Nesterov momentum, and $u_0$ is 0 there; both are as in optax.

    Source: Daskalakis et al. 2018, arXiv:1711.00141, algorithm 1.
    """
    direction = scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)
    ahead = scale_by_optimistic_gradient(alpha, beta)
    return joined("optimistic_adam_v2", direction, ahead, scale_by_learning_rate(learning_rate))
