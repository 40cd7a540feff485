"""Lion: the sign of an interpolated momentum (Chen et al. 2023, arXiv:2302.06675, algorithm 2)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from .._errors import DECAY, POSITIVE, RATE, check_hyperparameters, message
from .._initial import check_state_dtype, zeros
from .._leafwise import Fields, Scalars, Stage, lift
from .._numerics import as_decay, ema, like, times
from .._types import Rule, Scalar, ScalarOrSchedule, Updates
from ._stages import learning_rate_stage, weight_decay_stage

_MODES = {  # the interpolated momentum, and a number -> the direction
    "hard": lambda x, beta: jnp.sign(x),
    "smooth": lambda x, beta: jnp.tanh(times(like(beta, x), x)),
    "refined": lambda x, beta: jnp.where(jnp.abs(x) < 1.0, x, jnp.sign(x)),
}


class ScaleByLionState(NamedTuple):
    """State of Lion."""

    mu: Updates  # momentum, float32, shapes of the parameters


def scale_by_lion(
    b1: Scalar = 0.9,
    b2: Scalar = 0.99,
    mu_dtype: Any = None,
    *,
    mode: str = "hard",
    smooth_beta: Scalar = 1.0,
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
    who = "scale_by_lion"
    check_hyperparameters(who, b1=(b1, DECAY), b2=(b2, DECAY), smooth_beta=(smooth_beta, POSITIVE))
    if mode not in _MODES:
        raise ValueError(
            message(who, f"mode is unknown, got {mode!r}", allowed=f"one of {', '.join(map(repr, _MODES))}")
        )
    return lift(who, _stage(who, b1, b2, mu_dtype, mode, smooth_beta), chained=False)


def lion(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.99,
    mu_dtype: Any = None,
    weight_decay: ScalarOrSchedule = 1e-3,
    mask: Any = None,
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
    check_hyperparameters(
        "lion",
        learning_rate=(learning_rate, RATE),
        b1=(b1, DECAY),
        b2=(b2, DECAY),
        weight_decay=(weight_decay, RATE),
    )
    direction = _stage("lion", b1, b2, mu_dtype)
    decay = weight_decay_stage(weight_decay, mask)
    return lift("lion", direction, decay, learning_rate_stage(learning_rate))


def _stage(who: str, b1: Scalar, b2: Scalar, mu_dtype: Any, mode: str = "hard", beta: Scalar = 1.0) -> Stage:
    check_state_dtype(who, "mu_dtype", mu_dtype)
    b1, b2 = as_decay(b1), as_decay(b2)

    def step(scalars: Scalars, g: Array, p: Any, fields: Fields) -> tuple[Array, Fields]:
        del scalars, p
        mu = fields["mu"]
        return _MODES[mode](ema(mu, g, b1), beta), {"mu": ema(mu, g, b2)}

    return Stage(step, ScaleByLionState, {"mu": zeros(mu_dtype)})
