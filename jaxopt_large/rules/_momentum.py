"""Momentum as a mean: what matrix rules begin with, and Adam's without its bias."""

from typing import Any, NamedTuple

from jaxtyping import Array

from .._numerics import as_decay, bias_corrections, complement, ema, like, over, safe_increment, times
from .._types import Rule, Scalar, Updates
from ..leafwise import Stage, lift, zeros


class MomentumState(NamedTuple):
    """State of momentum."""

    mu: Updates  # mean gradient, float32, shapes of the parameters


def momentum(beta: Scalar, nesterov: bool, mu_dtype: Any) -> Rule:
    r"""$\mu_t = \beta \mu_{t-1} + (1-\beta) g_t$; with Nesterov $\beta \mu_t + (1-\beta) g_t$.

    Args:
      beta: $\beta$ in [0, 1).
      nesterov: look ahead along the momentum.
      mu_dtype: floating dtype of `mu`; by default float32 (float64 for float64).
    """
    decay = as_decay(beta)

    def step(shared: Any, g: Array, p: Any, kept: MomentumState) -> tuple[Array, Any]:
        del shared, p
        mu = ema(kept.mu, g, decay)
        d = like(decay, g)
        return times(d, mu) + times(complement(d), g) if nesterov else mu, MomentumState(mu)

    return lift("momentum", Stage(step, MomentumState(zeros(mu_dtype))), chained=False)


class Corrections(NamedTuple):
    """Of the biases of Adam's means."""

    mu: Array
    nu: Array
    next_mu: Array | None  # of the step after, with Nesterov momentum


def corrections(taken: Array, d1: Scalar, d2: Scalar, nesterov: bool) -> Corrections:
    """Those of a step.

    Args:
      taken: steps before it.
      d1: decay of the mean gradient.
      d2: decay of the mean square.
      nesterov: is the step after asked for too?
    """
    mu, nu = bias_corrections(taken, d1, d2)
    following = bias_corrections(safe_increment(taken), d1)[0] if nesterov else None
    return Corrections(mu, nu, following)


def unbiased(mu: Array, g: Array, decay: Scalar, correction: Array, following: Array | None) -> Array:
    r"""$\mu_t / c_t$; with Nesterov $\beta \mu_t / c_{t+1} + (1-\beta) g_t / c_t$.

    Args:
      mu: the mean gradient.
      g: the gradient.
      decay: $\beta$.
      correction: $c_t$, of the mean's bias.
      following: $c_{t+1}$, of the step after; None without Nesterov momentum.
    """
    if following is None:
        return over(mu, correction)
    d = like(decay, g)
    return over(times(d, mu), following) + over(times(complement(d), g), correction)
