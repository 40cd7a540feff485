"""RMSprop: each coordinate divided by the root of its recent mean square (Tieleman, Hinton 2012)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from .._hyperparameters import Decay, NonNegative, Rate, checked
from .._numerics import abs_square, as_decay, bounded, divide, ema, over, plus, safe_increment
from .._numerics import bias_correction as _correction
from .._types import Rule, Updates
from ..leafwise import Stage, constant, count, joined, lift, zeros
from ._registry import rule
from .learning_rate import scale_by_learning_rate
from .sgd import scale_by_sgd

__all__ = ["rmsprop", "scale_by_rmsprop"]


class ScaleByRmspropState(NamedTuple):
    """State of RMSprop."""

    count: Int[Array, ""] | None = None  # steps taken, with bias correction only
    mu: Updates = None  # mean gradient, float32, when centered only
    nu: Updates = None  # mean squared gradient, float32, shapes of the parameters


@checked
def scale_by_rmsprop(
    decay: Decay = 0.9,
    eps: NonNegative = 1e-8,
    initial_scale: NonNegative = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    bias_correction: bool = False,
) -> Rule:
    r"""The direction of RMSprop, see `rmsprop`.

    Raises:
      ValueError: decay is outside [0, 1), or another value negative or not finite.
    """
    d = as_decay(decay)

    def step(correction: Any, g: Array, p: Any, kept: ScaleByRmspropState) -> tuple[Array, Any]:
        del p
        g = bounded(g)
        nu = ema(kept.nu, abs_square(g), d)
        mu = ema(kept.mu, g, d) if centered else None
        spread = nu if correction is None else over(nu, correction)
        if mu is not None:  # rounding can take the variance below 0
            mean = mu if correction is None else over(mu, correction)
            spread = jnp.maximum(spread - abs_square(mean), jnp.zeros((), spread.dtype))
        if eps_in_sqrt:
            update = divide(g, jnp.sqrt(plus(spread, eps)))
        else:
            update = divide(g, plus(jnp.sqrt(spread), eps), eps)
        return update, kept._replace(mu=mu, nu=nu)

    state = ScaleByRmspropState(
        count=count() if bias_correction else None,
        mu=zeros() if centered else None,
        nu=constant(initial_scale, real=True),
    )
    shared = (lambda kept: _correction(d, safe_increment(kept.count))) if bias_correction else None
    return lift("scale_by_rmsprop", Stage(step, state, shared), chained=False)


@rule
def rmsprop(
    learning_rate: Rate,
    decay: Decay = 0.9,
    eps: NonNegative = 1e-8,
    initial_scale: NonNegative = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Decay | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> Rule:
    r"""RMSprop, plain or centered, with or without momentum.

    $$\nu_t = d \nu_{t-1} + (1-d) g_t^2, \qquad u_t = -\eta_t g_t / \sqrt{\nu_t + \epsilon}$$

    Centered, $\nu_t$ under the root becomes the variance $\nu_t - \mu_t^2$ with
    $\mu_t = d \mu_{t-1} + (1-d) g_t$. With momentum $\mu$ the change is
    $v_t = u_t + \mu v_{t-1}$, learning rate inside, as in optax and TensorFlow.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      decay: $d$ in [0, 1).
      eps: $\epsilon \ge 0$; a coordinate whose denominator is 0 moves by 0.
      initial_scale: $\nu_0 \ge 0$, in squared units of the gradient.
      eps_in_sqrt: $\sqrt{\nu + \epsilon}$, else $\sqrt{\nu} + \epsilon$ (PyTorch).
      centered: divide by the standard deviation.
      momentum: in [0, 1); None for none.
      nesterov: look ahead along the momentum.
      bias_correction: divide the means by $1 - d^t$ first.

    Returns:
      The rule; its state holds `nu`, and `mu`, `count`, `trace` where asked for.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Source: Tieleman and Hinton 2012, Coursera lecture 6e; centered: Graves 2013, arXiv:1308.0850.

    >>> rule = jl.rmsprop(1.0, decay=0.0, eps=0.0)
    >>> updates, state = rule.update(jnp.float32(3.0), rule.init(jnp.float32(0.0)))
    >>> float(updates), float(state[0].nu)
    (-1.0, 9.0)
    """
    direction = scale_by_rmsprop(decay, eps, initial_scale, eps_in_sqrt, centered, bias_correction)
    return joined(
        "rmsprop", direction, scale_by_learning_rate(learning_rate), scale_by_sgd(momentum, nesterov)
    )
