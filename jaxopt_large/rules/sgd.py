"""Minibatch SGD with heavy-ball or Nesterov momentum (Polyak 1964; Sutskever et al. 2013)."""

from typing import Any, NamedTuple

from jaxtyping import Array

from .._hyperparameters import Decay, Rate, StateDtype, checked
from .._numerics import as_decay, like, times
from .._types import Rule, Updates
from ..leafwise import Stage, joined, lift, zeros
from ._registry import rule
from .learning_rate import scale_by_learning_rate

__all__ = ["scale_by_sgd", "sgd"]


class ScaleByMomentumState(NamedTuple):
    """State of heavy-ball and Nesterov momentum."""

    trace: Updates  # decayed sum of gradients, float32, shapes of the parameters


@checked
def scale_by_sgd(
    momentum: Decay | None = None, nesterov: bool = False, accumulator_dtype: StateDtype = None
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
    if momentum is None:
        return lift("scale_by_sgd", Stage(lambda shared, g, p, kept: (g, kept)), chained=False)
    decay = as_decay(momentum)

    def step(shared: Any, g: Array, p: Any, kept: ScaleByMomentumState) -> tuple[Array, Any]:
        del shared, p
        d = like(decay, g)
        trace = g + times(d, kept.trace)
        return (g + times(d, trace) if nesterov else trace), ScaleByMomentumState(trace)

    return lift("scale_by_sgd", Stage(step, ScaleByMomentumState(zeros(accumulator_dtype))), chained=False)


@rule
def sgd(
    learning_rate: Rate,
    momentum: Decay | None = None,
    nesterov: bool = False,
    accumulator_dtype: StateDtype = None,
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
    direction = scale_by_sgd(momentum, nesterov, accumulator_dtype)
    return joined("sgd", direction, scale_by_learning_rate(learning_rate))
