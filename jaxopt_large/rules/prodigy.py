"""Prodigy: Adam that estimates its own rate (Mishchenko and Defazio 2023)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._hyperparameters import Decay, Decays, NonNegative, Positive, Rate
from .._numerics import (
    abs_square,
    as_decay,
    as_scalar,
    bias_correction,
    bounded,
    divide,
    ema,
    like,
    safe_increment,
    scalar_dtype,
    square_root,
    times,
)
from .._types import Rule, Updates
from ..leafwise import Stage, count, first_parameters, lift, shared, zeros
from ._registry import rule
from .learning_rate import checked_rate

__all__ = ["prodigy"]


_TERMS = 2**20  # largest products of which a sum is finite


class ProdigyState(NamedTuple):
    """State of Prodigy."""

    exp_avg: Updates  # mean gradient times the estimate, float32, shapes of the parameters
    exp_avg_sq: Updates  # mean square of that, float32, shapes of the parameters
    grad_sum: Updates  # weighted sum of gradients, float32, shapes of the parameters
    params0: Updates  # the first parameters, float32
    estim_lr: Float[Array, ""]  # the estimate of the distance to a minimum
    numerator_weighted: Float[Array, ""]
    count: Int[Array, ""]  # steps taken


class _Rates(NamedTuple):
    old: Array  # the estimate before
    new: Array  # and after the step's
    step: Array  # the old one times the learning rate and corrections


@rule
def prodigy(
    learning_rate: Rate = 1.0,
    betas: Decays = (0.9, 0.999),
    beta3: Decay | None = None,
    eps: NonNegative = 1e-8,
    estim_lr0: Positive = 1e-6,
    estim_lr_coef: Positive = 1.0,
    weight_decay: NonNegative = 0.0,
    safeguard_warmup: bool = False,
) -> Rule:
    r"""Prodigy: the distance to a minimum is estimated from below, and is the rate.

    With $d_t$ the estimate, $c_t = \sqrt{1-b_2^t} / (1-b_1^t)$ and $w_t = d_t \eta_t c_t$:

    $$r_t = b_3 r_{t-1} + \tfrac{d_t}{d_0} w_t \langle g_t, \theta_0 - \theta_t \rangle, \qquad
      s_t = b_3 s_{t-1} + \tfrac{d_t}{d_0} w_t g_t, \qquad
      d_{t+1} = \max(d_t, \kappa r_t / \lVert s_t \rVert_1)$$
    $$m_t = b_1 m_{t-1} + (1-b_1) d_t g_t, \qquad v_t = b_2 v_{t-1} + (1-b_2) d_t^2 g_t^2, \qquad
      \theta_{t+1} = \theta_t - w_t \left( \frac{m_t}{\sqrt{v_t} + d_{t+1} \epsilon} + \lambda \theta_t
      \right)$$

    The sums go over all leaves. The authors advise a schedule whose largest value is 1.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      betas: $b_1$ and $b_2$ in [0, 1).
      beta3: $b_3$ in [0, 1); by default $\sqrt{b_2}$.
      eps: $\epsilon \ge 0$; a coordinate whose denominator is 0 moves by 0.
      estim_lr0: $d_0 > 0$, the first estimate.
      estim_lr_coef: $\kappa > 0$.
      weight_decay: $\lambda \ge 0$, decoupled.
      safeguard_warmup: leave $\eta_t c_t$ out of $s_t$, so that a warm-up does not raise the estimate.

    Returns:
      The rule; its `update` needs `params`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Differs: the corrections $c_t$ are as in optax; the paper's algorithm has none, and its authors' program
    only if asked for.

    Source: Mishchenko and Defazio 2023, arXiv:2306.06101, algorithm 4; names as in optax.

    >>> rule, params = jl.prodigy(), jnp.float32(0.0)
    >>> updates, state = rule.update(jnp.float32(3.0), rule.init(params), params)
    >>> round(float(updates) / float(state[0].estim_lr), 4)
    -1.0
    """
    d1, d2 = (as_decay(b) for b in betas)
    d3 = square_root(d2) if beta3 is None else as_decay(beta3)

    def rates(kept: ProdigyState) -> _Rates:
        n = safe_increment(kept.count)
        corrected = jnp.sqrt(bias_correction(d2, n)) / bias_correction(d1, n)
        rate = checked_rate("prodigy", learning_rate, kept.count)
        return _Rates(kept.estim_lr, kept.estim_lr, kept.estim_lr * rate * corrected)

    def grad_sum(rates: _Rates, g: Array, kept: ProdigyState) -> Array:
        weight = rates.old if safeguard_warmup else rates.step
        return times(like(d3, g), kept.grad_sum) + times(weight * rates.old / like(estim_lr0, g), g)

    def measure(rates: _Rates, g: Array, p: Array, kept: ProdigyState) -> tuple[Array, Array]:
        g = bounded(g, _TERMS)
        inner = jnp.sum((g.conj() * (kept.params0 - p)).real)
        return inner, jnp.sum(jnp.abs(grad_sum(rates, g, kept)))

    def combine(rates: _Rates, kept: ProdigyState, totals: Any) -> tuple[_Rates, ProdigyState]:
        inner, norm = (total.astype(scalar_dtype()) for total in totals)
        first = as_scalar(estim_lr0)
        numerator = as_scalar(d3) * kept.numerator_weighted + rates.old / first * rates.step * inner
        found = as_scalar(estim_lr_coef) * divide(numerator, norm)
        new = jnp.maximum(rates.old, found)
        return rates._replace(new=new), kept._replace(estim_lr=new, numerator_weighted=numerator)

    def step(rates: _Rates, g: Array, p: Array, kept: ProdigyState, sums: Any) -> tuple[Array, Any]:
        del sums
        g = bounded(g, _TERMS)
        mean = ema(kept.exp_avg, times(rates.old, g), d1)
        square = ema(kept.exp_avg_sq, abs_square(times(rates.old, g)), d2)
        direction = divide(mean, jnp.sqrt(square) + rates.new * like(eps, square))
        update = -times(rates.step, direction + times(like(weight_decay, g), p))
        new = kept._replace(exp_avg=mean, exp_avg_sq=square, grad_sum=grad_sum(rates, g, kept))
        return update, new

    state = ProdigyState(
        exp_avg=zeros(),
        exp_avg_sq=zeros(real=True),
        grad_sum=zeros(),
        params0=first_parameters(),
        estim_lr=shared(estim_lr0),
        numerator_weighted=shared(0.0),
        count=count(),
    )
    return lift("prodigy", Stage(step, state, rates, measure, combine, needs_params=True))
