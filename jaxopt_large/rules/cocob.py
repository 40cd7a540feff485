"""COCOB: a bet on each coordinate, without a rate (Orabona and Tommasi 2017)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from .._hyperparameters import Mask, NonNegative, Positive, Rate, checked
from .._numerics import like
from .._types import Rule, Updates
from ..leafwise import Stage, constant, first_parameters, joined, lift, zeros
from ._registry import rule
from .learning_rate import scale_by_learning_rate
from .weight_decay import decay_of

__all__ = ["cocob", "scale_by_cocob"]


class COCOBState(NamedTuple):
    """State of COCOB."""

    init_particles: Updates  # the first parameters, float32
    cumulative_gradients: Updates  # minus the sum of gradients, float32, shapes of the parameters
    scale: Updates  # the largest gradient so far, float32, shapes of the parameters
    subgradients: Updates  # sum of sizes of gradients, float32, shapes of the parameters
    reward: Updates  # won so far, float32, shapes of the parameters


@checked
def scale_by_cocob(alpha: NonNegative = 100.0, eps: Positive = 1e-8) -> Rule:
    r"""The step of COCOB, see `cocob`.

    Raises:
      ValueError: a value is out of range.
    """

    def step(shared: Any, g: Array, p: Array, kept: COCOBState) -> tuple[Array, Any]:
        del shared
        moved = p - kept.init_particles
        scale = jnp.maximum(kept.scale, jnp.abs(g))
        sizes = kept.subgradients + jnp.abs(g)
        reward = jnp.maximum(kept.reward - g * moved, jnp.zeros((), g.dtype))
        total = kept.cumulative_gradients - g
        bet = total / scale * ((scale + reward) / jnp.maximum(sizes + scale, like(alpha, g) * scale))
        new = kept._replace(cumulative_gradients=total, scale=scale, subgradients=sizes, reward=reward)
        return bet - moved, new

    state = COCOBState(first_parameters(), zeros(), constant(eps), zeros(), zeros())
    return lift("scale_by_cocob", Stage(step, state, needs_params=True, is_real=True), chained=False)


@rule
def cocob(
    learning_rate: Rate = 1.0,
    alpha: NonNegative = 100.0,
    eps: Positive = 1e-8,
    weight_decay: Rate = 0.0,
    mask: Mask = None,
) -> Rule:
    r"""COCOB-Backprop: each coordinate bets what it has won on where the gradients point.

    $$L_t = \max(L_{t-1}, |g_t|), \quad G_t = G_{t-1} + |g_t|, \quad
      R_t = \max(R_{t-1} - g_t (\theta_t - \theta_0), 0), \quad C_t = C_{t-1} - g_t$$
    $$\theta_{t+1} = \theta_0 + \frac{C_t}{L_t \max(G_t + L_t, \alpha L_t)} (L_t + R_t)$$

    Args:
      learning_rate: times the gradient, a number >= 0, an array of shape (), or a schedule; the paper's is 1.
      alpha: $\alpha \ge 0$: the first steps have the size $1/\alpha$.
      eps: $L_0 > 0$.
      weight_decay: a number >= 0 or a schedule; times the parameter it is added to the gradient.
      mask: which leaves decay, see `adamw`.

    Returns:
      The rule; its `update` needs `params`. Real parameters only.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Source: Orabona and Tommasi 2017, arXiv:1705.07795, algorithm 2; names as in optax.

    >>> rule, params = jl.cocob(), jnp.float32(0.0)
    >>> updates, state = rule.update(jnp.float32(5.0), rule.init(params), params)
    >>> round(float(updates), 4)
    -0.01
    """
    rate = scale_by_learning_rate(learning_rate, flip_sign=False)
    return joined("cocob", *decay_of(weight_decay, mask), rate, scale_by_cocob(alpha, eps))
