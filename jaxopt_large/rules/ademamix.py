"""AdEMAMix: Adam with a second, much slower momentum (Pagliardini et al. 2024; Morwani et al. 2025)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from .._hyperparameters import Decay, DecayOrSchedule, Mask, NonNegative, Rate, StateDtype, checked
from .._numerics import (
    abs_square,
    as_decay,
    bias_correction,
    bounded,
    complement,
    divide,
    ema,
    like,
    over,
    plus,
    safe_increment,
    times,
)
from .._types import Rule, Updates
from ..leafwise import Stage, count, joined, lift, zeros
from ._registry import rule
from .learning_rate import scale_by_learning_rate, value_at
from .weight_decay import add_decayed_weights

__all__ = ["ademamix", "scale_by_ademamix", "scale_by_simplified_ademamix", "simplified_ademamix"]


class ScaleByAdemamixState(NamedTuple):
    """State of AdEMAMix."""

    count: Int[Array, ""]  # steps taken
    count_m2: Int[Array, ""]  # the same, for the schedules
    m1: Updates  # mean gradient, float32, shapes of the parameters
    m2: Updates  # slow mean gradient, float32, shapes of the parameters
    nu: Updates  # mean squared gradient, float32, shapes of the parameters


class ScaleBySimplifiedAdEMAMixState(NamedTuple):
    """State of simplified AdEMAMix."""

    t: Int[Array, ""]  # steps taken
    m: Updates  # decayed sum of gradients, float32, shapes of the parameters
    n: Updates  # mean squared gradient, float32, shapes of the parameters


class _Shared(NamedTuple):
    m1: Array
    nu: Array
    b3: Any
    rest: Any  # 1 - b3, of which float32 would lose four digits after b3 is rounded
    alpha: Any


@checked
def scale_by_ademamix(
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    b3: DecayOrSchedule = 0.9999,
    alpha: Rate = 6.0,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: StateDtype = None,
) -> Rule:
    r"""The direction of AdEMAMix, see `ademamix`.

    Raises:
      ValueError: a decay is outside [0, 1), another value negative, or the dtype not floating.
    """
    d1, d2 = as_decay(b1), as_decay(b2)

    def shared(kept: ScaleByAdemamixState) -> _Shared:
        n = safe_increment(kept.count)
        slow, mix = as_decay(value_at(b3, kept.count_m2)), value_at(alpha, kept.count_m2)
        return _Shared(bias_correction(d1, n), bias_correction(d2, n), slow, complement(slow), mix)

    def step(shared: _Shared, g: Array, p: Any, kept: ScaleByAdemamixState) -> tuple[Array, Any]:
        del p
        g = bounded(g)
        m1 = ema(kept.m1, g, d1)
        m2 = times(like(shared.b3, g), kept.m2) + times(like(shared.rest, g), g)
        nu = ema(kept.nu, abs_square(g), d2)
        mixed = over(m1, shared.m1) + times(like(shared.alpha, g), m2)
        root = jnp.sqrt(plus(nu / shared.nu, eps_root))
        return divide(mixed, plus(root, eps), eps), kept._replace(m1=m1, m2=m2, nu=nu)

    state = ScaleByAdemamixState(count(), count(), zeros(mu_dtype), zeros(mu_dtype), zeros(real=True))
    return lift("scale_by_ademamix", Stage(step, state, shared), chained=False)


@checked
def scale_by_simplified_ademamix(
    b1: Decay = 0.99,
    b2: Decay = 0.95,
    alpha: Rate = 0.0,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
) -> Rule:
    r"""The direction of simplified AdEMAMix, see `simplified_ademamix`.

    Raises:
      ValueError: a decay is outside [0, 1), or another value negative.
    """
    d1, d2 = as_decay(b1), as_decay(b2)

    def shared(kept: ScaleBySimplifiedAdEMAMixState) -> tuple[Array, Any]:
        return bias_correction(d2, safe_increment(kept.t)), value_at(alpha, kept.t)

    def step(
        shared: tuple[Array, Any], g: Array, p: Any, kept: ScaleBySimplifiedAdEMAMixState
    ) -> tuple[Array, Any]:
        del p
        g = bounded(g)
        m, n = times(like(d1, g), kept.m) + g, ema(kept.n, abs_square(g), d2)
        mixed = m + times(like(shared[1], g), g)
        root = jnp.sqrt(plus(n / shared[0], eps_root))
        return divide(mixed, plus(root, eps), eps), kept._replace(m=m, n=n)

    state = ScaleBySimplifiedAdEMAMixState(count(), zeros(), zeros(real=True))
    return lift("scale_by_simplified_ademamix", Stage(step, state, shared), chained=False)


@rule
def ademamix(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    b3: DecayOrSchedule = 0.9999,
    alpha: Rate = 5.0,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: StateDtype = None,
    weight_decay: Rate = 0.0,
    mask: Mask = None,
) -> Rule:
    r"""AdEMAMix: a fast and a slow mean of gradients.

    $$m_t = b_1 m_{t-1} + (1-b_1) g_t, \quad s_t = b_3 s_{t-1} + (1-b_3) g_t, \quad
      \nu_t = b_2 \nu_{t-1} + (1-b_2) g_t^2$$
    $$\theta_{t+1} = \theta_t - \eta_t \left( \frac{m_t/(1-b_1^t) + \alpha s_t}
      {\sqrt{\nu_t/(1-b_2^t) + \bar\epsilon} + \epsilon} + \lambda_t \theta_t \right)$$

    The paper lets $\alpha$ grow linearly and $b_3$ from $b_1$: give schedules for them.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      b1: $b_1$ in [0, 1), decay of the mean gradient.
      b2: $b_2$ in [0, 1), decay of the mean square.
      b3: $b_3$ in [0, 1), decay of the slow mean, or a schedule.
      alpha: $\alpha \ge 0$, weight of the slow mean, or a schedule.
      eps: $\epsilon \ge 0$, outside the root; a coordinate whose denominator is 0 moves by 0.
      eps_root: $\bar\epsilon \ge 0$, inside the root.
      mu_dtype: floating dtype of `m1` and `m2`; by default float32 (float64 for float64).
      weight_decay: $\lambda$, like the learning rate; decoupled, and multiplied by it.
      mask: which leaves decay: a glob over their paths, a tree of booleans, a prefix of one, or a function
        from the parameters to one of these; all of them by default.

    Returns:
      The rule; its `update` needs `params`; its state holds `count`, `count_m2`, `m1`, `m2` and `nu`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Source: Pagliardini, Ablin and Grangier 2024, arXiv:2409.03137, algorithm 1.

    >>> rule, params = jl.ademamix(0.5, b3=0.5, alpha=1.0, eps=0.0), jnp.float32(0.0)
    >>> updates, state = rule.update(jnp.float32(2.0), rule.init(params), params)
    >>> round(float(updates), 6)
    -0.75
    """
    direction = scale_by_ademamix(b1, b2, b3, alpha, eps, eps_root, mu_dtype)
    decay = add_decayed_weights(weight_decay, mask)
    return joined("ademamix", direction, decay, scale_by_learning_rate(learning_rate))


@rule
def simplified_ademamix(
    learning_rate: Rate,
    b1: Decay = 0.99,
    b2: Decay = 0.95,
    alpha: Rate = 0.0,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    weight_decay: Rate = 0.0,
    mask: Mask = None,
) -> Rule:
    r"""Simplified AdEMAMix: one momentum, beside which the gradient counts more.

    $$m_t = b_1 m_{t-1} + g_t, \qquad n_t = b_2 n_{t-1} + (1-b_2) g_t^2$$
    $$\theta_{t+1} = \theta_t - \eta_t \left( \frac{m_t + \alpha g_t}
      {\sqrt{n_t/(1-b_2^t) + \bar\epsilon} + \epsilon} + \lambda_t \theta_t \right)$$

    The momentum is a sum: take a rate about $1/(1-b_1)$ times below Adam's.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      b1: $b_1$ in [0, 1), decay of the sum of gradients.
      b2: $b_2$ in [0, 1), decay of the mean square.
      alpha: $\alpha \ge 0$, weight of the gradient, or a schedule.
      eps: $\epsilon \ge 0$, outside the root; a coordinate whose denominator is 0 moves by 0.
      eps_root: $\bar\epsilon \ge 0$, inside the root.
      weight_decay: $\lambda$, like the learning rate; decoupled, and multiplied by it.
      mask: which leaves decay: a glob over their paths, a tree of booleans, a prefix of one, or a function
        from the parameters to one of these; all of them by default.

    Returns:
      The rule; its `update` needs `params`; its state holds `t`, `m` and `n`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Source: Morwani et al. 2025, arXiv:2502.02431.
    """
    direction = scale_by_simplified_ademamix(b1, b2, alpha, eps, eps_root)
    decay = add_decayed_weights(weight_decay, mask)
    return joined("simplified_ademamix", direction, decay, scale_by_learning_rate(learning_rate))
