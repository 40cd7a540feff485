"""Adan: Nesterov momentum from differences of gradients (Xie et al. 2022)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from .._hyperparameters import Decay, Mask, NonNegative, Rate, checked
from .._numerics import (
    abs_square,
    as_decay,
    bias_correction,
    bounded,
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
from .learning_rate import scale_by_learning_rate
from .weight_decay import add_decayed_weights

__all__ = ["adan", "scale_by_adan"]


class ScaleByAdanState(NamedTuple):
    """State of Adan."""

    m: Updates  # mean gradient, float32, shapes of the parameters
    v: Updates  # mean difference of gradients, float32, shapes of the parameters
    n: Updates  # mean square of the gradient ahead, float32, shapes of the parameters
    g: Updates  # the gradient before, float32, shapes of the parameters
    t: Int[Array, ""]  # steps taken


class _Shared(NamedTuple):
    is_first: Array
    m: Array
    v: Array
    n: Array


@checked
def scale_by_adan(
    b1: Decay = 0.98,
    b2: Decay = 0.92,
    b3: Decay = 0.99,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
) -> Rule:
    r"""The direction of Adan, see `adan`.

    Raises:
      ValueError: b1, b2 or b3 is outside [0, 1), or another value negative.
    """
    d1, d2, d3 = as_decay(b1), as_decay(b2), as_decay(b3)

    def shared(kept: ScaleByAdanState) -> _Shared:
        corrections = (bias_correction(d, safe_increment(kept.t)) for d in (d1, d2, d3))
        return _Shared(kept.t == 0, *corrections)

    def step(shared: _Shared, g: Array, p: Any, kept: ScaleByAdanState) -> tuple[Array, Any]:
        del p
        g, d = bounded(g, 4), like(d2, g)
        difference = jnp.where(shared.is_first, jnp.zeros((), g.dtype), g - kept.g)
        m, v = ema(kept.m, g, d1), ema(kept.v, difference, d2)
        n = ema(kept.n, abs_square(g + times(d, difference)), d3)
        ahead = over(m, shared.m) + times(d, over(v, shared.v))
        root = jnp.sqrt(plus(n / shared.n, eps_root))
        return divide(ahead, plus(root, eps), eps), kept._replace(m=m, v=v, n=n, g=g)

    state = ScaleByAdanState(zeros(), zeros(), zeros(real=True), zeros(), count())
    return lift("scale_by_adan", Stage(step, state, shared), chained=False)


@rule
def adan(
    learning_rate: Rate,
    b1: Decay = 0.98,
    b2: Decay = 0.92,
    b3: Decay = 0.99,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 1e-8,
    weight_decay: Rate = 0.0,
    mask: Mask = None,
) -> Rule:
    r"""Adan: momentum that looks ahead by the difference of gradients.

    With $d_t = g_t - g_{t-1}$, and $d_1 = 0$:

    $$m_t = b_1 m_{t-1} + (1-b_1) g_t, \quad v_t = b_2 v_{t-1} + (1-b_2) d_t, \quad
      n_t = b_3 n_{t-1} + (1-b_3) (g_t + b_2 d_t)^2$$
    $$\theta_{t+1} = \theta_t - \eta_t \left( \frac{\hat m_t + b_2 \hat v_t}
      {\sqrt{\hat n_t + \bar\epsilon} + \epsilon} + \lambda_t \theta_t \right)$$

    The paper writes $1-\beta$ for each $b$.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      b1: $b_1$ in [0, 1), decay of the mean gradient.
      b2: $b_2$ in [0, 1), decay of the mean difference.
      b3: $b_3$ in [0, 1), decay of the mean square.
      eps: $\epsilon \ge 0$, outside the root; a coordinate whose denominator is 0 moves by 0.
      eps_root: $\bar\epsilon \ge 0$, inside the root.
      weight_decay: $\lambda$, like the learning rate; decoupled, and multiplied by it.
      mask: which leaves decay: a glob over their paths, a tree of booleans, a prefix of one, or a function
        from the parameters to one of these; all of them by default.

    Returns:
      The rule; its `update` needs `params`; its state holds `m`, `v`, `n`, `g` and `t`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Differs: optax 0.2.8 has $1-b_2$ in the place of $b_2$ in both sums, and looks ahead by 0.08 of a
    difference where the paper does by 0.92; the decay is decoupled as in `adamw`, where the paper divides by
    $1+\lambda\eta$.

    Source: Xie et al. 2022, arXiv:2208.06677, algorithm 1.

    >>> rule = jl.adan(0.5, eps=0.0, eps_root=0.0)
    >>> params = jnp.float32(0.0)
    >>> updates, state = rule.update(jnp.float32(3.0), rule.init(params), params)
    >>> round(float(updates), 6)
    -0.5
    """
    direction = scale_by_adan(b1, b2, b3, eps, eps_root)
    decay = add_decayed_weights(weight_decay, mask)
    return joined("adan", direction, decay, scale_by_learning_rate(learning_rate))
