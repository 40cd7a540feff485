"""Momentum as a mean: what matrix rules begin with."""

from typing import Any, NamedTuple

from jaxtyping import Array

from .._numerics import as_decay, complement, ema, like, times
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
