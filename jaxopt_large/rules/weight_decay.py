"""Decoupled weight decay (Loshchilov and Hutter 2019)."""

import numbers
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from .._hyperparameters import Mask, Rate, checked
from .._numerics import like, times
from .._types import Rule
from ..leafwise import lift
from .learning_rate import scheduled

__all__ = ["add_decayed_weights"]


@checked
def add_decayed_weights(weight_decay: Rate = 0.0, mask: Mask = None, *, cautious: bool = False) -> Rule:
    r"""Adds decoupled weight decay: $u_t = g_t + \lambda_t \theta_t$.

    With `cautious`, only where $g_t \theta_t > 0$: where the step goes towards 0 anyway.

    Args:
      weight_decay: $\lambda$, a number >= 0, an array of shape (), or a schedule.
      mask: which leaves decay: a glob over their paths, a tree of booleans, a prefix of one, or a function
        from the parameters to one of these; all of them by default.
      cautious: leave out what would slow the step down.

    Raises:
      ValueError: the decay is negative or not finite.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101, equation 12; Chen et al. 2025, arXiv:2510.12402, for
    `cautious`.
    """

    def step(decay: Any, g: Array, p: Array, kept: Any) -> tuple[Array, Any]:
        decay = like(weight_decay, g) if decay is None else decay
        decayed = times(decay, p)
        if cautious:
            decayed = jnp.where((g.conj() * p).real > 0, decayed, jnp.zeros((), p.dtype))
        return g + decayed, kept

    stage = scheduled(step, "weight_decay", weight_decay, needs_params=True, mask=mask)
    return lift("add_decayed_weights", stage, chained=False)


def decay_of(weight_decay: Any, mask: Any = None) -> tuple[Rule, ...]:
    """The decay of a rule that may have one; none where it is the Python number 0, and nothing is read."""
    if isinstance(weight_decay, numbers.Real) and weight_decay == 0:
        return ()
    return (add_decayed_weights(weight_decay, mask),)
