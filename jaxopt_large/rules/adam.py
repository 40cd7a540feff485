"""Adam and AdamW: momentum over root mean square (Kingma, Ba 2015; Loshchilov, Hutter 2019)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from .._errors import DECAY, NON_NEGATIVE, RATE, Range, check_hyperparameters
from .._initial import check_state_dtype, zeros
from .._leafwise import Fields, Scalars, Stage, lift
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
    times,
)
from .._types import Rule, Scalar, ScalarOrSchedule, Updates
from ._stages import learning_rate_stage, weight_decay_stage


class ScaleByAdamState(NamedTuple):
    """State of Adam."""

    count: Int[Array, ""]  # steps taken
    mu: Updates  # mean gradient, float32, shapes of the parameters
    nu: Updates  # mean squared gradient, float32, shapes of the parameters


def scale_by_adam(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
) -> Rule:
    r"""The direction of Adam, see `adam`.

    Raises:
      ValueError: b1 or b2 is outside [0, 1), another value negative, or the dtype not floating.
    """
    who = "scale_by_adam"
    check_hyperparameters(who, **_ranges(b1, b2, eps, eps_root))
    return lift(who, _stage(who, b1, b2, eps, eps_root, mu_dtype, nesterov), chained=False)


def scale_by_adamw(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Any = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Any = None,
    *,
    nesterov: bool = False,
) -> Rule:
    r"""The direction of AdamW, weight decay included, see `adamw`.

    Raises:
      ValueError: b1 or b2 is outside [0, 1), another value negative, or the dtype not floating.
    """
    who = "scale_by_adamw"
    check_hyperparameters(who, weight_decay=(weight_decay, RATE), **_ranges(b1, b2, eps, eps_root))
    direction = _stage(who, b1, b2, eps, eps_root, mu_dtype, nesterov)
    return lift(who, direction, weight_decay_stage(weight_decay, mask))


def adam(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
) -> Rule:
    r"""Adam.

    $$\mu_t = b_1 \mu_{t-1} + (1-b_1) g_t, \qquad \nu_t = b_2 \nu_{t-1} + (1-b_2) g_t^2$$
    $$\hat\mu_t = \mu_t / (1-b_1^t), \qquad \hat\nu_t = \nu_t / (1-b_2^t)$$
    $$\theta_{t+1} = \theta_t - \eta_t \hat\mu_t / (\sqrt{\hat\nu_t + \bar\epsilon} + \epsilon)$$

    With `nesterov` (NAdam),
    $\hat\mu_t = b_1 \mu_t / (1-b_1^{t+1}) + (1-b_1) g_t / (1-b_1^t)$.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      b1: $b_1$ in [0, 1).
      b2: $b_2$ in [0, 1).
      eps: $\epsilon \ge 0$, outside the root; a coordinate whose denominator is 0 moves by 0.
      eps_root: $\bar\epsilon \ge 0$, inside the root, for differentiating through the step.
      mu_dtype: floating dtype of `mu`; by default float32 (float64 for float64).
      nesterov: Nesterov momentum.

    Returns:
      The rule; its state holds `count`, `mu` and `nu`.

    Raises:
      ValueError: a value is out of range, or the dtype is not a floating one.
      TypeError: a value is not a number.

    Source: Kingma and Ba 2015, arXiv:1412.6980, algorithm 1; Dozat 2016 for `nesterov`.

    >>> rule = jl.adam(0.5, eps=0.0)
    >>> updates, state = rule.update(jnp.float32(1e-12), rule.init(jnp.float32(0.0)))
    >>> round(float(updates), 6)  # the first step has the size of the learning rate
    -0.5
    """
    check_hyperparameters("adam", learning_rate=(learning_rate, RATE), **_ranges(b1, b2, eps, eps_root))
    direction = _stage("adam", b1, b2, eps, eps_root, mu_dtype, nesterov)
    return lift("adam", direction, learning_rate_stage(learning_rate))


def adamw(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Any = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Any = None,
    *,
    nesterov: bool = False,
) -> Rule:
    r"""Adam with decoupled weight decay.

    $$\theta_{t+1} = \theta_t - \eta_t \left( \hat\mu_t / (\sqrt{\hat\nu_t + \bar\epsilon}
      + \epsilon) + \lambda_t \theta_t \right)$$

    with $\hat\mu$ and $\hat\nu$ as in `adam`. The sum is formed in float32 and rounded once: in
    bfloat16 the decay would vanish beside the direction.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      b1: $b_1$ in [0, 1).
      b2: $b_2$ in [0, 1).
      eps: $\epsilon \ge 0$, outside the root; a coordinate whose denominator is 0 moves by 0.
      eps_root: $\bar\epsilon \ge 0$, inside the root.
      mu_dtype: floating dtype of `mu`; by default float32 (float64 for float64).
      weight_decay: $\lambda$, like the learning rate; multiplied by it, as in PyTorch and optax.
      mask: which leaves decay: a glob over their paths, a tree of booleans, a prefix of one, or a function
        from the parameters to one of these; all of them by default.
      nesterov: Nesterov momentum.

    Returns:
      The rule; its `update` needs `params`; its state holds `count`, `mu` and `nu`.

    Raises:
      ValueError: a value is out of range, or the dtype is not a floating one.
      TypeError: a value is not a number.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2.

    >>> rule = jl.adamw(0.5, weight_decay=0.1)
    >>> params = jnp.float32(2.0)
    >>> updates, state = rule.update(jnp.float32(0.0), rule.init(params), params)
    >>> round(float(updates), 6)  # no gradient: decay only
    -0.1
    """
    who = "adamw"
    check_hyperparameters(
        who,
        learning_rate=(learning_rate, RATE),
        weight_decay=(weight_decay, RATE),
        **_ranges(b1, b2, eps, eps_root),
    )
    direction = _stage(who, b1, b2, eps, eps_root, mu_dtype, nesterov)
    decay = weight_decay_stage(weight_decay, mask)
    return lift(who, direction, decay, learning_rate_stage(learning_rate))


def _ranges(b1: Scalar, b2: Scalar, eps: Scalar, eps_root: Scalar) -> dict[str, tuple[Scalar, Range]]:
    return {
        "b1": (b1, DECAY),
        "b2": (b2, DECAY),
        "eps": (eps, NON_NEGATIVE),
        "eps_root": (eps_root, NON_NEGATIVE),
    }


def _stage(
    who: str, b1: Scalar, b2: Scalar, eps: Scalar, eps_root: Scalar, mu_dtype: Any, nesterov: bool
) -> Stage:
    check_state_dtype(who, "mu_dtype", mu_dtype)
    b1, b2 = as_decay(b1), as_decay(b2)

    def scalars(count: Array) -> Scalars:
        return {
            "c1": bias_correction(b1, count + 1),
            "c2": bias_correction(b2, count + 1),
            **({"c1_next": bias_correction(b1, count + 2)} if nesterov else {}),
        }

    def step(shared: Scalars, g: Array, p: Any, fields: Fields) -> tuple[Array, Fields]:
        del p
        g = bounded(g)
        mu = ema(fields["mu"], g, b1)
        nu = ema(fields["nu"], abs_square(g), b2)
        if nesterov:
            d = like(b1, g)
            mu_hat = over(times(d, mu), shared["c1_next"]) + over(times(complement(d), g), shared["c1"])
        else:
            mu_hat = over(mu, shared["c1"])
        root = jnp.sqrt(plus(nu / shared["c2"], eps_root))
        return divide(mu_hat, plus(root, eps), eps), {"mu": mu, "nu": nu}

    return Stage(step, ScaleByAdamState, {"mu": zeros(mu_dtype), "nu": zeros(real=True)}, scalars=scalars)
