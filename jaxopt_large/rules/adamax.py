"""Adamax: Adam with the largest gradient in the place of the root mean square (Kingma and Ba 2015)."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from .._hyperparameters import Decay, Mask, NonNegative, Rate, checked
from .._numerics import as_decay, bias_correction, divide, ema, like, over, plus, safe_increment
from .._types import Rule
from ..leafwise import Stage, count, joined, lift, zeros
from ._registry import rule
from .adam import ScaleByAdamState
from .learning_rate import scale_by_learning_rate
from .weight_decay import add_decayed_weights

__all__ = ["adamax", "adamaxw", "scale_by_adamax"]


@checked
def scale_by_adamax(b1: Decay = 0.9, b2: Decay = 0.999, eps: NonNegative = 1e-8) -> Rule:
    r"""The direction of Adamax, see `adamax`.

    Raises:
      ValueError: b1 or b2 is outside [0, 1), or eps is negative.
    """
    d1, d2 = as_decay(b1), as_decay(b2)

    def step(correction: Array, g: Array, p: Any, kept: ScaleByAdamState) -> tuple[Array, Any]:
        del p
        mu = ema(kept.mu, g, d1)
        nu = jnp.maximum(like(d2, g) * kept.nu, plus(jnp.abs(g), eps))
        return divide(over(mu, correction), nu), kept._replace(mu=mu, nu=nu)

    state = ScaleByAdamState(count=count(), mu=zeros(), nu=zeros(real=True))
    shared = lambda kept: bias_correction(d1, safe_increment(kept.count))  # noqa: E731
    return lift("scale_by_adamax", Stage(step, state, shared), chained=False)


@rule
def adamax(learning_rate: Rate, b1: Decay = 0.9, b2: Decay = 0.999, eps: NonNegative = 1e-8) -> Rule:
    r"""Adamax: Adam under the infinity norm.

    $$\nu_t = \max(b_2 \nu_{t-1}, |g_t| + \epsilon), \qquad
      \theta_{t+1} = \theta_t - \frac{\eta_t}{1-b_1^t} \frac{\mu_t}{\nu_t}$$

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      b1: $b_1$ in [0, 1), decay of the mean gradient.
      b2: $b_2$ in [0, 1), decay of the largest gradient.
      eps: $\epsilon \ge 0$, beside the gradient, as in PyTorch and optax; the paper has none.

    Returns:
      The rule; its state holds `count`, `mu` and `nu`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Differs: $\epsilon$ is beside the gradient, as in PyTorch and optax; the paper has none.

    Source: Kingma and Ba 2015, arXiv:1412.6980, algorithm 2.

    >>> rule = jl.adamax(0.5, eps=0.0)
    >>> updates, state = rule.update(jnp.float32(1e-6), rule.init(jnp.float32(0.0)))
    >>> round(float(updates), 6)
    -0.5
    """
    return joined("adamax", scale_by_adamax(b1, b2, eps), scale_by_learning_rate(learning_rate))


@rule
def adamaxw(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: Rate = 1e-4,
    mask: Mask = None,
) -> Rule:
    r"""Adamax with decoupled weight decay.

    $$\theta_{t+1} = \theta_t - \eta_t \left( \frac{\mu_t}{(1-b_1^t) \nu_t} + \lambda_t \theta_t \right)$$

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      b1: $b_1$ in [0, 1), decay of the mean gradient.
      b2: $b_2$ in [0, 1), decay of the largest gradient.
      eps: as in `adamax`.
      weight_decay: $\lambda$, like the learning rate; decoupled, and multiplied by it.
      mask: which leaves decay: a glob over their paths, a tree of booleans, a prefix of one, or a function
        from the parameters to one of these; all of them by default.

    Returns:
      The rule; its `update` needs `params`; its state holds `count`, `mu` and `nu`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Source: Kingma and Ba 2015, arXiv:1412.6980, algorithm 2; Loshchilov and Hutter 2019, arXiv:1711.05101,
    for the decay.
    """
    decay = add_decayed_weights(weight_decay, mask)
    return joined("adamaxw", scale_by_adamax(b1, b2, eps), decay, scale_by_learning_rate(learning_rate))
