"""RMSprop: each coordinate divided by the root of its recent mean square (Tieleman, Hinton 2012)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from .._errors import DECAY, NON_NEGATIVE, RATE, Range, check_hyperparameters
from .._initial import constant, zeros
from .._leafwise import Fields, Scalars, Stage, lift
from .._numerics import abs_square, as_decay, bounded, divide, ema, over, plus
from .._numerics import bias_correction as _correction
from .._types import Rule, Scalar, ScalarOrSchedule, Updates
from ._stages import direction_stage, learning_rate_stage, momentum_stage


class ScaleByRmspropState(NamedTuple):
    """State of RMSprop."""

    count: Int[Array, ""] | None = None  # steps taken, with bias correction only
    mu: Updates = None  # mean gradient, float32, when centered only
    nu: Updates = None  # mean squared gradient, float32, shapes of the parameters


def scale_by_rmsprop(
    decay: Scalar = 0.9,
    eps: Scalar = 1e-8,
    initial_scale: Scalar = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    bias_correction: bool = False,
) -> Rule:
    r"""The direction of RMSprop, see `rmsprop`.

    Raises:
      ValueError: decay is outside [0, 1), or another value negative or not finite.
    """
    who = "scale_by_rmsprop"
    check_hyperparameters(who, **_ranges(decay, eps, initial_scale))
    stage = _stage(decay, eps, initial_scale, eps_in_sqrt, centered, bias_correction)
    return lift(who, stage, chained=False)


def rmsprop(
    learning_rate: ScalarOrSchedule,
    decay: Scalar = 0.9,
    eps: Scalar = 1e-8,
    initial_scale: Scalar = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Scalar | None = None,
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
    who = "rmsprop"
    momentum_range = {} if momentum is None else {"momentum": (momentum, DECAY)}
    check_hyperparameters(
        who, learning_rate=(learning_rate, RATE), **momentum_range, **_ranges(decay, eps, initial_scale)
    )
    direction = _stage(decay, eps, initial_scale, eps_in_sqrt, centered, bias_correction)
    last = direction_stage() if momentum is None else momentum_stage(momentum, nesterov)
    return lift(who, direction, learning_rate_stage(learning_rate), last)


def _ranges(decay: Scalar, eps: Scalar, initial_scale: Scalar) -> dict[str, tuple[Scalar, Range]]:
    return {
        "decay": (decay, DECAY),
        "eps": (eps, NON_NEGATIVE),
        "initial_scale": (initial_scale, NON_NEGATIVE),
    }


def _stage(
    decay: Scalar,
    eps: Scalar,
    initial_scale: Scalar,
    eps_in_sqrt: bool,
    centered: bool,
    corrected: bool,
) -> Stage:
    decay = as_decay(decay)

    def scalars(count: Array) -> Scalars:
        return {"correction": _correction(decay, count + 1)}

    def step(shared: Scalars, g: Array, p: Any, fields: Fields) -> tuple[Array, Fields]:
        del p
        g = bounded(g)
        new = {"nu": ema(fields["nu"], abs_square(g), decay)}
        if centered:
            new["mu"] = ema(fields["mu"], g, decay)
        means = {name: over(x, shared["correction"]) for name, x in new.items()} if corrected else new
        spread = means["nu"]
        if centered:  # rounding can take the variance below 0
            spread = jnp.maximum(spread - abs_square(means["mu"]), jnp.zeros((), spread.dtype))
        if eps_in_sqrt:
            return divide(g, jnp.sqrt(plus(spread, eps))), new
        return divide(g, plus(jnp.sqrt(spread), eps), eps), new

    fields = {"nu": constant(initial_scale, real=True)} | ({"mu": zeros()} if centered else {})
    return Stage(step, ScaleByRmspropState, fields, scalars=scalars if corrected else None)
