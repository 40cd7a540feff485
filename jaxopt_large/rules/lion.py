"""Lion: the sign of an interpolated momentum (Chen et al. 2023, arXiv:2302.06675, algorithm 2)."""

from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from .._hyperparameters import Decay, Mask, OneOf, Positive, Rate, StateDtype, checked
from .._numerics import as_decay, ema, like, times
from .._types import Rule, Updates
from ..leafwise import Stage, joined, lift, zeros
from ._registry import rule
from .learning_rate import scale_by_learning_rate
from .weight_decay import add_decayed_weights

__all__ = ["lion", "scale_by_lion"]

_MODES = {  # the interpolated momentum, and a number -> the direction
    "hard": lambda x, beta: jnp.sign(x),
    "smooth": lambda x, beta: jnp.tanh(times(like(beta, x), x)),
    "refined": lambda x, beta: jnp.where(jnp.abs(x) < 1.0, x, jnp.sign(x)),
}


class ScaleByLionState(NamedTuple):
    """State of Lion."""

    mu: Updates  # momentum, float32, shapes of the parameters


@checked
def scale_by_lion(
    b1: Decay = 0.9,
    b2: Decay = 0.99,
    mu_dtype: StateDtype = None,
    *,
    mode: Annotated[str, OneOf(*_MODES)] = "hard",
    smooth_beta: Positive = 1.0,
) -> Rule:
    r"""The direction of Lion.

    $$u_t = \mathrm{sign}(b_1 \mu_{t-1} + (1-b_1) g_t), \qquad \mu_t = b_2 \mu_{t-1} + (1-b_2) g_t$$

    Args:
      b1: $b_1$ in [0, 1), weight of the momentum in the direction.
      b2: $b_2$ in [0, 1), decay of the momentum.
      mu_dtype: floating dtype of `mu`; by default float32 (float64 for float64).
      mode: "hard" for the sign; "smooth" for $\tanh(\beta x)$; "refined" for the sign, but $x$ itself
        where $|x| < 1$.
      smooth_beta: $\beta > 0$, for "smooth".

    Raises:
      ValueError: b1 or b2 is outside [0, 1), the dtype is not a floating one, or the mode is unknown.

    Source: Chen et al. 2023, arXiv:2302.06675, algorithm 2.
    """
    d1, d2 = as_decay(b1), as_decay(b2)

    def step(shared: Any, g: Array, p: Any, kept: ScaleByLionState) -> tuple[Array, Any]:
        del shared, p
        direction = _MODES[mode](ema(kept.mu, g, d1), smooth_beta)
        return direction, ScaleByLionState(ema(kept.mu, g, d2))

    return lift("scale_by_lion", Stage(step, ScaleByLionState(zeros(mu_dtype))), chained=False)


@rule
def lion(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.99,
    mu_dtype: StateDtype = None,
    weight_decay: Rate = 1e-3,
    mask: Mask = None,
) -> Rule:
    r"""Lion, with decoupled weight decay.

    $$\theta_{t+1} = \theta_t - \eta_t (\mathrm{sign}(b_1 \mu_{t-1} + (1-b_1) g_t) + \lambda_t \theta_t)$$
    $$\mu_t = b_2 \mu_{t-1} + (1-b_2) g_t$$

    Every coordinate moves by the learning rate: take a rate 3 to 10 times below Adam's, and a
    weight decay as much above.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      b1: $b_1$ in [0, 1), weight of the momentum in the direction.
      b2: $b_2$ in [0, 1), decay of the momentum.
      mu_dtype: floating dtype of `mu`; by default float32 (float64 for float64).
      weight_decay: $\lambda$, like the learning rate.
      mask: which leaves decay: a glob over their paths, a tree of booleans, a prefix of one, or a function
        from the parameters to one of these; all of them by default.

    Returns:
      The rule; its `update` needs `params`; its state holds `mu` alone.

    Raises:
      ValueError: a value is out of range, or the dtype is not a floating one.
      TypeError: a value is not a number.

    Source: Chen et al. 2023, arXiv:2302.06675, algorithm 2.

    >>> rule = jl.lion(0.5, weight_decay=0.0)
    >>> params = jnp.float32(2.0)
    >>> updates, state = rule.update(jnp.float32(-1e-3), rule.init(params), params)
    >>> float(updates)
    0.5
    """
    direction = scale_by_lion(b1, b2, mu_dtype)
    decay = add_decayed_weights(weight_decay, mask)
    return joined("lion", direction, decay, scale_by_learning_rate(learning_rate))
