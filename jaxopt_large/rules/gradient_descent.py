"""Gradient descent: minus the learning rate times the gradient (Cauchy 1847)."""

from .._errors import RATE, check_hyperparameters
from .._leafwise import lift
from .._types import Rule, ScalarOrSchedule
from ._stages import direction_stage, learning_rate_stage


def scale_by_gradient_descent() -> Rule:
    r"""The gradient itself as the direction: $u_t = g_t$.

    >>> rule = jl.scale_by_gradient_descent()
    >>> updates, state = rule.update(jnp.float32(2.0), rule.init(jnp.float32(1.0)))
    >>> float(updates)
    2.0
    """
    return lift("scale_by_gradient_descent", direction_stage(), chained=False)


def gradient_descent(learning_rate: ScalarOrSchedule) -> Rule:
    r"""Gradient descent: $\theta_{t+1} = \theta_t - \eta_t g_t$.

    Of the whole data set's gradient this is the classic method, of a minibatch's it is SGD without
    momentum.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.

    Returns:
      The rule; it keeps no state for a constant rate.

    Raises:
      ValueError: the rate is negative or not finite.
      TypeError: the rate is not a number, array or schedule.

    >>> params = {"w": jnp.array([1.0, 2.0])}
    >>> rule = jl.gradient_descent(0.5)
    >>> updates, state = rule.update(params, rule.init(params))
    >>> optax.apply_updates(params, updates)["w"].tolist()
    [0.5, 1.0]
    """
    who = "gradient_descent"
    check_hyperparameters(who, learning_rate=(learning_rate, RATE))
    return lift(who, direction_stage(), learning_rate_stage(learning_rate))
