"""Yogi: Adam whose mean square changes by additions (Zaheer et al. 2018)."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from .._hyperparameters import Decay, Mask, NonNegative, Rate, checked
from .._numerics import (
    abs_square,
    as_decay,
    bias_corrections,
    bounded,
    complement,
    divide,
    ema,
    like,
    over,
    plus,
)
from .._types import Rule
from ..leafwise import Stage, constant, count, joined, lift, zeros
from ._registry import rule
from .adam import ScaleByAdamState
from .learning_rate import scale_by_learning_rate
from .weight_decay import decay_of

__all__ = ["scale_by_yogi", "yogi"]


@checked
def scale_by_yogi(
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-3,
    eps_root: NonNegative = 0.0,
    initial_accumulator_value: NonNegative = 1e-6,
) -> Rule:
    r"""The direction of Yogi, see `yogi`.

    Raises:
      ValueError: b1 or b2 is outside [0, 1), or another value negative.
    """
    d1, d2 = as_decay(b1), as_decay(b2)

    def corrections(kept: ScaleByAdamState) -> tuple[Array, ...]:
        return bias_corrections(kept.count, d1, d2)

    def step(shared: tuple[Array, ...], g: Array, p: Any, kept: ScaleByAdamState) -> tuple[Array, Any]:
        del p
        g = bounded(g, 4)
        mu, square = ema(kept.mu, g, d1), abs_square(g)
        # between nu and g^2, whichever is larger: rounding must not take it below 0
        change = complement(like(d2, g)) * square
        nu = jnp.maximum(kept.nu - jnp.sign(kept.nu - square) * change, jnp.zeros((), square.dtype))
        root = jnp.sqrt(plus(nu / shared[1], eps_root))
        return divide(over(mu, shared[0]), plus(root, eps), eps), kept._replace(mu=mu, nu=nu)

    state = ScaleByAdamState(count(), zeros(), constant(initial_accumulator_value, real=True))
    return lift("scale_by_yogi", Stage(step, state, corrections), chained=False)


@rule
def yogi(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-3,
    *,
    initial_accumulator_value: NonNegative = 1e-6,
    weight_decay: Rate = 0.0,
    mask: Mask = None,
) -> Rule:
    r"""Yogi: Adam whose mean square moves by no more than the gradient's square.

    $$\nu_t = \nu_{t-1} - (1-b_2) \,\mathrm{sign}(\nu_{t-1} - g_t^2) g_t^2, \qquad
      \theta_{t+1} = \theta_t - \eta_t \hat\mu_t / (\sqrt{\hat\nu_t} + \epsilon)$$

    with $\hat\mu$ and the correction of $\nu$ as in `adam`.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      b1: $b_1$ in [0, 1), decay of the mean gradient.
      b2: $b_2$ in [0, 1): how fast the mean square moves.
      eps: $\epsilon \ge 0$, outside the root; a coordinate whose denominator is 0 moves by 0.
      initial_accumulator_value: $\nu_0 \ge 0$.
      weight_decay: $\lambda$, like the learning rate; decoupled, and multiplied by it.
      mask: which leaves decay: a glob over their paths, a tree of booleans, a prefix of one, or a function
        from the parameters to one of these; all of them by default.

    Returns:
      The rule; its state holds `count`, `mu` and `nu`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Differs: the means are corrected, as in optax and not in the paper; the mean gradient begins at 0, so that
    nothing moves before a gradient does, where optax begins it at $\nu_0$.

    Source: Zaheer et al. 2018, "Adaptive methods for nonconvex optimization", algorithm 2.

    >>> rule = jl.yogi(0.5, b2=0.5, eps=0.0, initial_accumulator_value=0.0)
    >>> updates, state = rule.update(jnp.float32(2.0), rule.init(jnp.float32(0.0)))
    >>> round(float(updates), 6), float(state[0].nu)
    (-0.5, 2.0)
    """
    direction = scale_by_yogi(b1, b2, eps, 0.0, initial_accumulator_value)
    return joined("yogi", direction, *decay_of(weight_decay, mask), scale_by_learning_rate(learning_rate))
