"""AdaBelief: Adam whose mean square is of what the mean did not foresee (Zhuang et al. 2020)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from .._hyperparameters import Decay, Mask, NonNegative, Rate, checked
from .._numerics import abs_square, as_decay, bounded, divide, ema, plus
from .._types import Rule, Updates
from ..leafwise import Stage, count, joined, lift, zeros
from ._momentum import Corrections, corrections, unbiased
from ._registry import rule
from .learning_rate import scale_by_learning_rate
from .weight_decay import decay_of

__all__ = ["adabelief", "scale_by_belief"]


class ScaleByBeliefState(NamedTuple):
    """State of AdaBelief."""

    count: Int[Array, ""]  # steps taken
    mu: Updates  # mean gradient, float32, shapes of the parameters
    nu: Updates  # mean squared deviation from it, float32, shapes of the parameters


@checked
def scale_by_belief(
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-16,
    eps_root: NonNegative = 1e-16,
    *,
    nesterov: bool = False,
) -> Rule:
    r"""The direction of AdaBelief, see `adabelief`.

    Raises:
      ValueError: b1 or b2 is outside [0, 1), or another value negative.
    """
    d1, d2 = as_decay(b1), as_decay(b2)

    def shared(kept: ScaleByBeliefState) -> Corrections:
        return corrections(kept.count, d1, d2, nesterov)

    def step(shared: Corrections, g: Array, p: Any, kept: ScaleByBeliefState) -> tuple[Array, Any]:
        del p
        g = bounded(g)
        mu = ema(kept.mu, g, d1)
        nu = plus(ema(kept.nu, abs_square(bounded(g - mu)), d2), eps_root)
        mu_hat = unbiased(mu, g, d1, shared.mu, shared.next_mu)
        return divide(mu_hat, plus(jnp.sqrt(nu / shared.nu), eps), eps), kept._replace(mu=mu, nu=nu)

    state = ScaleByBeliefState(count(), zeros(), zeros(real=True))
    return lift("scale_by_belief", Stage(step, state, shared), chained=False)


@rule
def adabelief(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-16,
    eps_root: NonNegative = 1e-16,
    *,
    nesterov: bool = False,
    weight_decay: Rate = 0.0,
    mask: Mask = None,
) -> Rule:
    r"""AdaBelief: long steps where gradients are as foreseen.

    $$\nu_t = b_2 \nu_{t-1} + (1-b_2) (g_t - \mu_t)^2 + \bar\epsilon, \qquad
      \theta_{t+1} = \theta_t - \eta_t \hat\mu_t / (\sqrt{\nu_t / (1-b_2^t)} + \epsilon)$$

    with $\mu$ and $\hat\mu$ as in `adam`.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      b1: $b_1$ in [0, 1), decay of the mean gradient.
      b2: $b_2$ in [0, 1), decay of the mean squared deviation.
      eps: $\epsilon \ge 0$, outside the root; a coordinate whose denominator is 0 moves by 0.
      eps_root: $\bar\epsilon \ge 0$, added to $\nu$ in every step, as the paper has it.
      nesterov: Nesterov momentum.
      weight_decay: $\lambda$, like the learning rate; decoupled, and multiplied by it.
      mask: which leaves decay: a glob over their paths, a tree of booleans, a prefix of one, or a function
        from the parameters to one of these; all of them by default.

    Returns:
      The rule; its state holds `count`, `mu` and `nu`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Source: Zhuang et al. 2020, arXiv:2010.07468, algorithm 2.

    >>> rule = jl.adabelief(0.5)
    >>> updates, state = rule.update(jnp.float32(1.0), rule.init(jnp.float32(0.0)))
    >>> round(float(updates), 4)  # 0.5 / (1 - b1): the mean is a tenth of the gradient
    -0.5556
    """
    direction = scale_by_belief(b1, b2, eps, eps_root, nesterov=nesterov)
    return joined(
        "adabelief", direction, *decay_of(weight_decay, mask), scale_by_learning_rate(learning_rate)
    )
