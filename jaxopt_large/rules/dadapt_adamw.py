"""D-Adaptation: AdamW that estimates its own rate (Defazio and Mishchenko 2023)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._hyperparameters import Decays, NonNegative, Positive, Rate
from .._numerics import (
    abs_square,
    as_decay,
    as_scalar,
    bias_correction,
    bounded,
    complement,
    divide,
    ema,
    like,
    plus,
    safe_increment,
    scalar_dtype,
    square_root,
    times,
)
from .._types import Rule, Updates
from ..leafwise import Stage, count, lift, shared, zeros
from ._registry import rule
from .learning_rate import checked_rate

__all__ = ["dadapt_adamw"]


class DAdaptAdamWState(NamedTuple):
    """State of D-Adaptation."""

    exp_avg: Updates  # mean gradient times the rate, float32, shapes of the parameters
    exp_avg_sq: Updates  # mean squared gradient, float32, shapes of the parameters
    grad_sum: Updates  # weighted mean of gradients, float32, shapes of the parameters
    estim_lr: Float[Array, ""]  # the estimate of the distance to a minimum
    numerator_weighted: Float[Array, ""]
    count: Int[Array, ""]  # steps taken


@rule
def dadapt_adamw(
    learning_rate: Rate = 1.0,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    estim_lr0: Positive = 1e-6,
    weight_decay: NonNegative = 0.0,
) -> Rule:
    r"""D-Adaptation of AdamW: the distance to a minimum is estimated from below, and is the rate.

    With $d_t$ the estimate, $c_t = \sqrt{1-b_2^t} / (1-b_1^t)$, $w_t = d_t \eta_t c_t$ and
    $\beta = \sqrt{b_2}$:

    $$r_t = \beta r_{t-1} + (1-\beta) w_t \langle g_t, s_{t-1} / (\sqrt{v_{t-1}} + \epsilon) \rangle, \qquad
      s_t = \beta s_{t-1} + (1-\beta) w_t g_t$$
    $$d_{t+1} = \max(d_t, r_t / ((1-\beta) \lVert s_t \rVert_1))$$
    $$m_t = b_1 m_{t-1} + (1-b_1) w_t g_t, \qquad v_t = b_2 v_{t-1} + (1-b_2) g_t^2, \qquad
      \theta_{t+1} = \theta_t - \frac{m_t}{\sqrt{v_t} + \epsilon} - w_t \lambda \theta_t$$

    The sums go over all leaves.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      betas: $b_1$ and $b_2$ in [0, 1).
      eps: $\epsilon \ge 0$; a coordinate whose denominator is 0 moves by 0.
      estim_lr0: $d_0 > 0$, the first estimate.
      weight_decay: $\lambda \ge 0$, decoupled.

    Returns:
      The rule; its `update` needs `params`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Source: Defazio and Mishchenko 2023, arXiv:2301.07733, algorithm 5, in the form of its authors' program;
    names as in optax.

    >>> rule, params = jl.dadapt_adamw(), jnp.float32(0.0)
    >>> updates, state = rule.update(jnp.float32(3.0), rule.init(params), params)
    >>> round(float(updates) / 1e-6, 4)
    -1.0
    """
    d1, d2 = (as_decay(b) for b in betas)
    d3 = square_root(d2)

    def rate(kept: DAdaptAdamWState) -> Array:
        n = safe_increment(kept.count)
        corrected = jnp.sqrt(bias_correction(d2, n)) / bias_correction(d1, n)
        return kept.estim_lr * checked_rate("dadapt_adamw", learning_rate, kept.count) * corrected

    def grad_sum(rate: Array, g: Array, kept: DAdaptAdamWState) -> Array:
        return ema(kept.grad_sum, times(rate, g), d3)

    def measure(rate: Array, g: Array, p: Any, kept: DAdaptAdamWState) -> tuple[Array, Array]:
        del p
        g = bounded(g)
        weighted = divide(kept.grad_sum, plus(jnp.sqrt(kept.exp_avg_sq), eps), eps)
        return jnp.sum((g.conj() * weighted).real), jnp.sum(jnp.abs(grad_sum(rate, g, kept)))

    def combine(rate: Array, kept: DAdaptAdamWState, totals: Any) -> tuple[Array, DAdaptAdamWState]:
        inner, norm = (total.astype(scalar_dtype()) for total in totals)
        rest = complement(as_scalar(d3))
        numerator = as_scalar(d3) * kept.numerator_weighted + rest * rate * inner
        new = jnp.maximum(kept.estim_lr, divide(numerator, rest * norm))
        return rate, kept._replace(estim_lr=new, numerator_weighted=numerator)

    def step(rate: Array, g: Array, p: Array, kept: DAdaptAdamWState, sums: Any) -> tuple[Array, Any]:
        del sums
        g = bounded(g)
        mean = ema(kept.exp_avg, times(rate, g), d1)
        square = ema(kept.exp_avg_sq, abs_square(g), d2)
        decay = times(like(weight_decay, g) * rate, p)
        update = -divide(mean, plus(jnp.sqrt(square), eps), eps) - decay
        return update, kept._replace(exp_avg=mean, exp_avg_sq=square, grad_sum=grad_sum(rate, g, kept))

    state = DAdaptAdamWState(zeros(), zeros(real=True), zeros(), shared(estim_lr0), shared(0.0), count())
    return lift("dadapt_adamw", Stage(step, state, rate, measure, combine, needs_params=True))
