"""signSGD and Signum: the sign of the gradient, or of its mean (Bernstein et al. 2018)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from .._hyperparameters import Decay, Mask, Rate, StateDtype, checked
from .._numerics import as_decay, ema
from .._types import Rule, Updates
from ..leafwise import Stage, joined, lift, zeros
from ._registry import rule
from .learning_rate import scale_by_learning_rate
from .weight_decay import decay_of

__all__ = ["scale_by_sign", "scale_by_signum", "sign_sgd", "signum"]


class ScaleBySignumState(NamedTuple):
    """State of Signum."""

    mu: Updates  # mean gradient, float32, shapes of the parameters


def scale_by_sign() -> Rule:
    r"""The sign of the gradient: $u_t = \mathrm{sign}(g_t)$; of a complex one, $g / |g|$."""
    return lift("scale_by_sign", Stage(lambda shared, g, p, kept: (jnp.sign(g), kept)), chained=False)


@checked
def scale_by_signum(beta: Decay = 0.9, accumulator_dtype: StateDtype = None) -> Rule:
    r"""The sign of the mean gradient, see `signum`.

    Raises:
      ValueError: beta is outside [0, 1), or the dtype is not a floating one.
    """
    d = as_decay(beta)

    def step(shared: Any, g: Array, p: Any, kept: ScaleBySignumState) -> tuple[Array, Any]:
        del shared, p
        mu = ema(kept.mu, g, d)
        return jnp.sign(mu), ScaleBySignumState(mu)

    state = ScaleBySignumState(zeros(accumulator_dtype))
    return lift("scale_by_signum", Stage(step, state), chained=False)


@rule
def sign_sgd(learning_rate: Rate, *, weight_decay: Rate = 0.0, mask: Mask = None) -> Rule:
    r"""signSGD: every coordinate moves by the learning rate.

    $$\theta_{t+1} = \theta_t - \eta_t (\mathrm{sign}(g_t) + \lambda_t \theta_t)$$

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      weight_decay: $\lambda$, like the learning rate; decoupled, and multiplied by it.
      mask: which leaves decay: a glob over their paths, a tree of booleans, a prefix of one, or a function
        from the parameters to one of these; all of them by default.

    Returns:
      The rule; it keeps no state for constants.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Source: Bernstein et al. 2018, arXiv:1802.04434, algorithm 1.

    >>> rule = jl.sign_sgd(0.5)
    >>> updates, _ = rule.update(jnp.array([3.0, -1e-9, 0.0]), rule.init(jnp.zeros(3)))
    >>> updates.tolist()
    [-0.5, 0.5, -0.0]
    """
    return joined(
        "sign_sgd", scale_by_sign(), *decay_of(weight_decay, mask), scale_by_learning_rate(learning_rate)
    )


@rule
def signum(
    learning_rate: Rate,
    beta: Decay = 0.9,
    accumulator_dtype: StateDtype = None,
    *,
    weight_decay: Rate = 0.0,
    mask: Mask = None,
) -> Rule:
    r"""Signum: the sign of a mean gradient.

    $$\mu_t = \beta \mu_{t-1} + (1-\beta) g_t, \qquad
      \theta_{t+1} = \theta_t - \eta_t (\mathrm{sign}(\mu_t) + \lambda_t \theta_t)$$

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      beta: $\beta$ in [0, 1).
      accumulator_dtype: floating dtype of `mu`; by default float32 (float64 for float64).
      weight_decay: $\lambda$, like the learning rate; decoupled, and multiplied by it.
      mask: which leaves decay: a glob over their paths, a tree of booleans, a prefix of one, or a function
        from the parameters to one of these; all of them by default.

    Returns:
      The rule; its state holds `mu`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Source: Bernstein et al. 2018, arXiv:1802.04434, algorithm 2.
    """
    direction = scale_by_signum(beta, accumulator_dtype)
    return joined("signum", direction, *decay_of(weight_decay, mask), scale_by_learning_rate(learning_rate))
