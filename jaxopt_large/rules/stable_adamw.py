"""StableAdamW: AdamW whose updates are clipped leaf by leaf (Wortsman et al. 2023)."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from .._hyperparameters import Decay, Mask, Positive, Rate, StateDtype, checked
from .._numerics import abs_square, as_decay, bias_corrections, bounded, divide, ema, like, over, plus, times
from .._types import Rule
from ..leafwise import Stage, count, joined, lift, size_of, zeros
from ._registry import rule
from .adam import ScaleByAdamState
from .learning_rate import scale_by_learning_rate
from .weight_decay import add_decayed_weights

__all__ = ["scale_by_stable_adam", "stable_adamw"]


@checked
def scale_by_stable_adam(
    b1: Decay = 0.9, b2: Decay = 0.99, eps: Positive = 1e-6, mu_dtype: StateDtype = None
) -> Rule:
    r"""The direction of StableAdamW without its decay, see `stable_adamw`.

    Raises:
      ValueError: b1 or b2 is outside [0, 1), eps is not positive, or the dtype not floating.
    """
    d1, d2 = as_decay(b1), as_decay(b2)

    def corrections(kept: ScaleByAdamState) -> tuple[Array, ...]:
        return bias_corrections(kept.count, d1, d2)

    def measure(shared: tuple[Array, ...], g: Array, p: Any, kept: ScaleByAdamState) -> Array:
        del p
        square = abs_square(bounded(g))
        spread = ema(kept.nu, square, d2) / shared[1]
        return jnp.sum(divide(square, jnp.maximum(spread, jnp.square(like(eps, square)))))

    def step(
        shared: tuple[Array, ...], g: Array, p: Any, kept: ScaleByAdamState, total: Array
    ) -> tuple[Array, Any]:
        del p
        g = bounded(g)
        mu, nu = ema(kept.mu, g, d1), ema(kept.nu, abs_square(g), d2)
        shrink = 1.0 / jnp.maximum(1.0, jnp.sqrt(total / size_of(g)))
        update = over(over(mu, shared[0]), plus(jnp.sqrt(nu / shared[1]), eps))
        return times(shrink, update), kept._replace(mu=mu, nu=nu)

    state = ScaleByAdamState(count=count(), mu=zeros(mu_dtype), nu=zeros(real=True))
    return lift("scale_by_stable_adam", Stage(step, state, corrections, measure, needs="axes"), chained=False)


@rule
def stable_adamw(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.99,
    eps: Positive = 1e-6,
    mu_dtype: StateDtype = None,
    weight_decay: Rate = 1e-2,
    mask: Mask = None,
) -> Rule:
    r"""StableAdamW: smaller steps where gradients outgrow their mean square.

    $$\rho_t = \sqrt{\mathrm{mean}(g_t^2 / \max(\hat\nu_t, \epsilon^2))}, \qquad
      \theta_{t+1} = \theta_t - \eta_t \left( \frac{1}{\max(1, \rho_t)}
      \frac{\hat\mu_t}{\sqrt{\hat\nu_t} + \epsilon} + \lambda_t \theta_t \right)$$

    with the means as in `adam`, and $\rho$ of each leaf. It takes the place of clipping the gradient.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      b1: $b_1$ in [0, 1), decay of the mean gradient.
      b2: $b_2$ in [0, 1), decay of the mean square.
      eps: $\epsilon > 0$.
      mu_dtype: floating dtype of `mu`; by default float32 (float64 for float64).
      weight_decay: $\lambda$, like the learning rate; decoupled, and multiplied by it.
      mask: which leaves decay: a glob over their paths, a tree of booleans, a prefix of one, or a function
        from the parameters to one of these; all of them by default.

    Returns:
      The rule; its `update` needs `params`; its state holds `count`, `mu` and `nu`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Differs: the paper divides the decay too.

    Source: Wortsman et al. 2023, arXiv:2304.13013, algorithm 2.

    >>> rule, params = jl.stable_adamw(0.5, weight_decay=0.0), jnp.float32(0.0)
    >>> _, state = rule.update(jnp.float32(1.0), rule.init(params), params)
    >>> calm, _ = rule.update(jnp.float32(1.0), state, params)
    >>> jump, _ = rule.update(jnp.float32(1e3), state, params)
    >>> round(float(calm), 2), round(float(jump), 2)  # adam's would be -0.37
    (-0.5, -0.26)
    """
    direction = scale_by_stable_adam(b1, b2, eps, mu_dtype)
    decay = add_decayed_weights(weight_decay, mask)
    return joined("stable_adamw", direction, decay, scale_by_learning_rate(learning_rate))
