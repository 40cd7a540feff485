"""Minibatch SGD with heavy-ball or Nesterov momentum (Polyak 1964; Sutskever et al. 2013)."""

from typing import Any

from .._errors import DECAY, RATE, Range, check_hyperparameters
from .._initial import check_state_dtype
from .._leafwise import Stage, lift
from .._types import Rule, Scalar, ScalarOrSchedule
from ._stages import direction_stage, learning_rate_stage, momentum_stage


def scale_by_sgd(
    momentum: Scalar | None = None, nesterov: bool = False, accumulator_dtype: Any = None
) -> Rule:
    r"""The direction of SGD with momentum.

    $$v_t = g_t + \mu v_{t-1}, \qquad u_t = v_t \quad (\text{Nesterov: } u_t = g_t + \mu v_t)$$

    Args:
      momentum: $\mu$ in [0, 1); None for the gradient itself, and no state.
      nesterov: look ahead along the momentum.
      accumulator_dtype: floating dtype of `trace`; by default float32 (float64 for float64).

    Raises:
      ValueError: momentum is outside [0, 1), or the dtype is not a floating one.

    Source: Sutskever et al. 2013, "On the importance of initialization and momentum".
    """
    who = "scale_by_sgd"
    check_hyperparameters(who, **_ranges(momentum))
    return lift(who, _direction(who, momentum, nesterov, accumulator_dtype), chained=False)


def sgd(
    learning_rate: ScalarOrSchedule,
    momentum: Scalar | None = None,
    nesterov: bool = False,
    accumulator_dtype: Any = None,
) -> Rule:
    r"""Stochastic gradient descent, with or without momentum.

    $$v_t = g_t + \mu v_{t-1}, \qquad \theta_{t+1} = \theta_t - \eta_t v_t$$

    With `nesterov`, $\theta_{t+1} = \theta_t - \eta_t (g_t + \mu v_t)$.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      momentum: $\mu$ in [0, 1); None for plain SGD, which keeps no state.
      nesterov: look ahead along the momentum.
      accumulator_dtype: floating dtype of `trace`; by default float32 (float64 for float64).

    Returns:
      The rule; its state holds `trace` when there is momentum.

    Raises:
      ValueError: a value is out of range, or the dtype is not a floating one.
      TypeError: a value is not a number.

    Source: Sutskever et al. 2013, "On the importance of initialization and momentum".

    >>> rule = jl.sgd(0.1, momentum=0.9)
    >>> state = rule.init(jnp.float32(0.0))
    >>> for _ in range(2):
    ...     updates, state = rule.update(jnp.float32(1.0), state)
    >>> round(float(updates), 6)
    -0.19
    """
    check_hyperparameters("sgd", learning_rate=(learning_rate, RATE), **_ranges(momentum))
    direction = _direction("sgd", momentum, nesterov, accumulator_dtype)
    return lift("sgd", direction, learning_rate_stage(learning_rate))


def _ranges(momentum: Scalar | None) -> dict[str, tuple[Scalar, Range]]:
    return {} if momentum is None else {"momentum": (momentum, DECAY)}


def _direction(who: str, momentum: Scalar | None, nesterov: bool, dtype: Any) -> Stage:
    check_state_dtype(who, "accumulator_dtype", dtype)
    if momentum is None:
        return direction_stage()
    return momentum_stage(momentum, nesterov, dtype)
