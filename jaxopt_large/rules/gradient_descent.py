"""Gradient descent: minus the learning rate times the gradient (Cauchy 1847)."""

from .._hyperparameters import Rate
from .._types import Rule
from ..leafwise import Stage, joined, lift
from ._registry import rule
from .learning_rate import scale_by_learning_rate

__all__ = ["gradient_descent", "scale_by_gradient_descent"]


def scale_by_gradient_descent() -> Rule:
    r"""The gradient itself as the direction: $u_t = g_t$.

    >>> rule = jl.scale_by_gradient_descent()
    >>> updates, state = rule.update(jnp.float32(2.0), rule.init(jnp.float32(1.0)))
    >>> float(updates)
    2.0
    """
    return lift("scale_by_gradient_descent", Stage(lambda shared, g, p, kept: (g, kept)), chained=False)


@rule
def gradient_descent(learning_rate: Rate) -> Rule:
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

    Source: Cauchy 1847, "Méthode générale pour la résolution des systèmes d'équations simultanées".

    >>> params = {"w": jnp.array([1.0, 2.0])}
    >>> rule = jl.gradient_descent(0.5)
    >>> updates, state = rule.update(params, rule.init(params))
    >>> optax.apply_updates(params, updates)["w"].tolist()
    [0.5, 1.0]
    """
    return joined("gradient_descent", scale_by_gradient_descent(), scale_by_learning_rate(learning_rate))
