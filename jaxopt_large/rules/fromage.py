"""Fromage: steps that turn each leaf by an angle (Bernstein et al. 2020)."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from .._hyperparameters import NonNegative, Rate, checked
from .._numerics import times
from .._types import Rule
from ..leafwise import joined, lift
from ._registry import rule
from .learning_rate import scheduled
from .trust_ratio import scale_by_trust_ratio

__all__ = ["fromage"]


@rule
def fromage(learning_rate: Rate, min_norm: NonNegative = 1e-6) -> Rule:
    r"""Fromage: the norm of a leaf is kept where the gradient is orthogonal to it.

    $$\theta_{t+1} = \frac{1}{\sqrt{1+\eta_t^2}}
      \left( \theta_t - \eta_t \frac{\lVert\theta_t\rVert}{\lVert g_t\rVert} g_t \right)$$

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      min_norm: the least that either norm counts.

    Returns:
      The rule; its `update` needs `params`; it keeps no state for a constant rate.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Source: Bernstein et al. 2020, arXiv:2002.03432, algorithm 1.

    >>> rule, params = jl.fromage(1.0), jnp.array([2.0, 0.0])
    >>> updates, _ = rule.update(jnp.array([0.0, 5.0]), rule.init(params), params)
    >>> [round(x, 4) for x in (params + updates).tolist()]
    [1.4142, -1.4142]
    """
    return joined("fromage", scale_by_trust_ratio(min_norm), _turned(learning_rate))


@checked
def _turned(learning_rate: Rate) -> Rule:
    """The step along an update, and back to the norm of a right angle."""

    def step(rate: Any, u: Array, p: Array, kept: Any) -> tuple[Array, Any]:
        rate = jnp.asarray(learning_rate if rate is None else rate, u.real.dtype)
        shrunk = 1.0 / jnp.sqrt(1.0 + jnp.square(rate))
        # 1/sqrt(1 + r^2) - 1 without cancellation
        lost = jnp.square(rate) * jnp.square(shrunk) / (1.0 + shrunk)
        return -times(shrunk * rate, u) - times(lost, p), kept

    stage = scheduled(step, "learning_rate", learning_rate, needs_params=True)
    return lift("fromage", stage, chained=False)
