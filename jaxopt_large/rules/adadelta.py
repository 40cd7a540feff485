"""Adadelta: gradients in the units of the parameters, without a learning rate (Zeiler 2012)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from .._hyperparameters import Decay, Mask, NonNegative, Rate, checked
from .._numerics import abs_square, as_decay, bounded, divide, ema, plus, times
from .._types import Rule, Updates
from ..leafwise import Stage, joined, lift, zeros
from ._registry import rule
from .learning_rate import scale_by_learning_rate
from .weight_decay import decay_of

__all__ = ["adadelta", "scale_by_adadelta"]


class ScaleByAdaDeltaState(NamedTuple):
    """State of Adadelta."""

    e_g: Updates  # mean squared gradient, float32, shapes of the parameters
    e_x: Updates  # mean squared direction, float32, shapes of the parameters


@checked
def scale_by_adadelta(rho: Decay = 0.9, eps: NonNegative = 1e-6) -> Rule:
    r"""The direction of Adadelta, see `adadelta`.

    Raises:
      ValueError: rho is outside [0, 1), or eps is negative.
    """
    d = as_decay(rho)

    def step(shared: Any, g: Array, p: Any, kept: ScaleByAdaDeltaState) -> tuple[Array, Any]:
        del shared, p
        g = bounded(g)
        e_g = ema(kept.e_g, abs_square(g), d)
        update = times(jnp.sqrt(plus(kept.e_x, eps)), divide(g, jnp.sqrt(plus(e_g, eps))))
        return update, ScaleByAdaDeltaState(e_g, ema(kept.e_x, abs_square(update), d))

    state = ScaleByAdaDeltaState(zeros(real=True), zeros(real=True))
    return lift("scale_by_adadelta", Stage(step, state), chained=False)


@rule
def adadelta(
    learning_rate: Rate | None = None,
    rho: Decay = 0.9,
    eps: NonNegative = 1e-6,
    weight_decay: Rate = 0.0,
    weight_decay_mask: Mask = None,
) -> Rule:
    r"""Adadelta: each coordinate's steps have the size of its steps before.

    $$a_t = \rho a_{t-1} + (1-\rho) g_t^2, \qquad
      u_t = \frac{\sqrt{b_{t-1} + \epsilon}}{\sqrt{a_t + \epsilon}} g_t, \qquad
      b_t = \rho b_{t-1} + (1-\rho) u_t^2, \qquad \theta_{t+1} = \theta_t - \eta_t u_t$$

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule; the paper's is 1. None
        leaves $u_t$ as it is, to be turned and scaled by what follows in a chain, as in optax.
      rho: $\rho$ in [0, 1).
      eps: $\epsilon \ge 0$; at first a coordinate moves by no more than $\sqrt{\epsilon / (1-\rho)}$.
      weight_decay: $\lambda$, a number >= 0 or a schedule: $\lambda \theta$ is added to the gradient.
      weight_decay_mask: which leaves decay: a glob, booleans, or a function from the parameters to those.

    Returns:
      The rule; its state holds `e_g` and `e_x`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Source: Zeiler 2012, arXiv:1212.5701, algorithm 1.

    >>> rule = jl.adadelta(1.0, rho=0.0, eps=1e-4)
    >>> updates, state = rule.update(jnp.float32(5.0), rule.init(jnp.float32(0.0)))
    >>> round(float(updates), 4)
    -0.01
    """
    decay = decay_of(weight_decay, weight_decay_mask)
    return joined("adadelta", *decay, scale_by_adadelta(rho, eps), scale_by_learning_rate(learning_rate))
