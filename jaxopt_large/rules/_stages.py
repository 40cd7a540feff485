"""Stages that several rules share: the learning rate, decoupled weight decay, momentum."""

from typing import Any, NamedTuple

from jaxtyping import Array, Int

from .._errors import RATE, check_hyperparameters
from .._initial import zeros
from .._leafwise import Fields, Scalars, Stage, lift
from .._numerics import as_decay, like, times
from .._types import Rule, Scalar, ScalarOrSchedule, Updates


class ScaleByScheduleState(NamedTuple):
    """State of a stage whose value is a function of the step."""

    count: Int[Array, ""]  # steps taken


class ScaleByMomentumState(NamedTuple):
    """State of heavy-ball and Nesterov momentum."""

    trace: Updates  # decayed sum of gradients, float32, shapes of the parameters


def scale_by_learning_rate(learning_rate: ScalarOrSchedule | None = None, *, flip_sign: bool = True) -> Rule:
    r"""Multiplies by minus the learning rate: $u_t = -\eta_t g_t$.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule, which is called
        with the number of steps taken before this one; None passes the gradient on as it is.
      flip_sign: whether the sign is turned; else $u_t = \eta_t g_t$.

    Returns:
      The rule; its state is empty for a number and holds `count` for a schedule.

    Raises:
      ValueError: the rate is negative or not finite.
      TypeError: the rate is none of the above.

    >>> rule = jl.scale_by_learning_rate(0.5)
    >>> updates, state = rule.update(jnp.float32(2.0), rule.init(jnp.float32(1.0)))
    >>> float(updates)
    -1.0
    """
    who = "scale_by_learning_rate"
    if learning_rate is None:
        return lift(who, direction_stage(), chained=False)
    check_hyperparameters(who, learning_rate=(learning_rate, RATE))
    return lift(who, learning_rate_stage(learning_rate, flip_sign), chained=False)


def add_decayed_weights(weight_decay: ScalarOrSchedule = 0.0, mask: Any = None) -> Rule:
    r"""Adds decoupled weight decay: $u_t = g_t + \lambda_t \theta_t$.

    Args:
      weight_decay: $\lambda$, a number >= 0, an array of shape (), or a schedule.
      mask: which leaves decay: a glob over their paths, a tree of booleans, a prefix of one, or a function
        from the parameters to one of these; all of them by default.

    Raises:
      ValueError: the decay is negative or not finite.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101, equation 12.
    """
    check_hyperparameters("add_decayed_weights", weight_decay=(weight_decay, RATE))
    return lift("add_decayed_weights", weight_decay_stage(weight_decay, mask), chained=False)


def direction_stage() -> Stage:
    """u = g."""

    def step(scalars: Scalars, g: Array, p: Any, fields: Fields) -> tuple[Array, Fields]:
        del scalars, p
        return g, fields

    return Stage(step)


def learning_rate_stage(learning_rate: ScalarOrSchedule, flip_sign: bool = True) -> Stage:
    """u = -lr * g."""

    def step(scalars: Scalars, g: Array, p: Any, fields: Fields) -> tuple[Array, Fields]:
        del p
        rate = _value(scalars, learning_rate, g)
        return times(-rate if flip_sign else rate, g), fields

    return _scheduled("learning_rate", learning_rate, step)


def weight_decay_stage(weight_decay: ScalarOrSchedule, mask: Any) -> Stage:
    """u = g + weight_decay * p."""

    def step(scalars: Scalars, g: Array, p: Any, fields: Fields) -> tuple[Array, Fields]:
        return g + times(_value(scalars, weight_decay, g), p), fields

    return _scheduled("weight_decay", weight_decay, step, needs_params=True, mask=mask)


def _scheduled(name: str, value: ScalarOrSchedule, step: Any, **options: Any) -> Stage:
    """A stage that reads `value`: a constant, or a schedule with a counter of its own."""
    if callable(value):
        return Stage(
            step,
            ScaleByScheduleState,
            scalars=lambda count: {"value": value(count)},
            scheduled=name,
            **options,
        )
    return Stage(step, **options)


def _value(scalars: Scalars, value: ScalarOrSchedule, x: Array) -> Scalar:
    return scalars["value"] if "value" in scalars else like(value, x)


def momentum_stage(momentum: Scalar, nesterov: bool, dtype: Any = None) -> Stage:
    """trace = g + momentum * trace; u = trace, or g + momentum * trace (Nesterov)."""
    decay = as_decay(momentum)

    def step(scalars: Scalars, g: Array, p: Any, fields: Fields) -> tuple[Array, Fields]:
        del scalars, p
        d = like(decay, g)
        trace = g + times(d, fields["trace"])
        return (g + times(d, trace) if nesterov else trace), {"trace": trace}

    return Stage(step, ScaleByMomentumState, {"trace": zeros(dtype)})
