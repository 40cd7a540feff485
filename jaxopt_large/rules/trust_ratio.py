"""Trust ratios: each leaf's step in proportion to its norm; LARS and LAMB (You et al. 2017, 2020)."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from .._hyperparameters import Decay, Mask, NonNegative, Rate, checked
from .._numerics import abs_square, bounded, like, times
from .._types import Rule
from ..leafwise import Stage, joined, lift, size_of
from ._registry import rule
from .adam import scale_by_adam
from .learning_rate import scale_by_learning_rate
from .sgd import scale_by_sgd
from .weight_decay import add_decayed_weights

__all__ = ["lamb", "lars", "scale_by_trust_ratio"]


@checked
def scale_by_trust_ratio(
    min_norm: NonNegative = 0.0,
    trust_coefficient: NonNegative = 1.0,
    eps: NonNegative = 0.0,
    mask: Mask = None,
) -> Rule:
    r"""Scales the update of each leaf by the leaf's norm.

    $$u \leftarrow \tau \frac{\lVert\theta\rVert}{\lVert u \rVert + \epsilon} u$$

    Where either norm is 0 the update is left as it is.

    Args:
      min_norm: the least that either norm counts.
      trust_coefficient: $\tau \ge 0$.
      eps: $\epsilon \ge 0$.
      mask: which leaves are scaled, see `adamw`.

    Raises:
      ValueError: a value is negative or not finite.

    Source: You, Gitman and Ginsburg 2017, arXiv:1708.03888, equation 6.
    """

    def measure(shared: Any, u: Array, p: Array, kept: Any) -> tuple[Array, Array]:
        del shared, kept
        return tuple(jnp.sum(abs_square(bounded(x, size_of(x)))) for x in (u, p))  # type: ignore[return-value]

    def step(shared: Any, u: Array, p: Array, kept: Any, sums: Any) -> tuple[Array, Any]:
        del shared, p
        u = bounded(u, size_of(u))
        norms = [jnp.maximum(jnp.sqrt(total), like(min_norm, u)) for total in sums]
        has_none = (norms[0] == 0) | (norms[1] == 0)
        below = jnp.where(has_none, 1.0, norms[0] + like(eps, u)).astype(norms[0].dtype)
        ratio = like(trust_coefficient, u) * norms[1] / below
        return times(jnp.where(has_none, 1.0, ratio).astype(ratio.dtype), u), kept

    stage = Stage(step, measure=measure, needs="axes", needs_params=True, mask=mask)
    return lift("scale_by_trust_ratio", stage, chained=False)


@rule
def lars(
    learning_rate: Rate,
    weight_decay: Rate = 0.0,
    weight_decay_mask: Mask = True,
    trust_coefficient: NonNegative = 0.001,
    eps: NonNegative = 0.0,
    trust_ratio_mask: Mask = True,
    momentum: Decay = 0.9,
    nesterov: bool = False,
) -> Rule:
    r"""LARS: SGD with momentum, the rate of each leaf in proportion to its norm.

    $$h_t = g_t + \lambda \theta_t, \qquad
      v_t = \mu v_{t-1} - \eta_t \tau \frac{\lVert\theta_t\rVert}{\lVert h_t \rVert + \epsilon} h_t, \qquad
      \theta_{t+1} = \theta_t + v_t$$

    The norms are those of leaves: of stacked layers, one for all of them.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      weight_decay: $\lambda$, a number >= 0 or a schedule.
      weight_decay_mask: which leaves decay, see `adamw`.
      trust_coefficient: $\tau \ge 0$.
      eps: $\epsilon \ge 0$.
      trust_ratio_mask: of which leaves norms count; biases and norms are often left out.
      momentum: $\mu$ in [0, 1).
      nesterov: look ahead along the momentum.

    Returns:
      The rule; its `update` needs `params`; its state holds `trace`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Differs: the paper divides by $\lVert g_t \rVert + \lambda \lVert\theta_t\rVert$; $\lVert h_t \rVert$ is
    optax's.

    Source: You, Gitman and Ginsburg 2017, arXiv:1708.03888, algorithm 1.

    >>> rule, params = jl.lars(1.0, trust_coefficient=0.5), jnp.array([3.0, 4.0])
    >>> updates, _ = rule.update(jnp.array([0.0, 100.0]), rule.init(params), params)
    >>> (updates + 0.0).tolist()
    [0.0, -2.5]
    """
    decay = add_decayed_weights(weight_decay, weight_decay_mask)
    scaled = scale_by_trust_ratio(0.0, trust_coefficient, eps, trust_ratio_mask)
    rate = scale_by_learning_rate(learning_rate)
    return joined("lars", decay, scaled, rate, scale_by_sgd(momentum, nesterov))


@rule
def lamb(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-6,
    eps_root: NonNegative = 0.0,
    weight_decay: Rate = 0.0,
    mask: Mask = None,
) -> Rule:
    r"""LAMB: AdamW, the step of each leaf in proportion to its norm.

    $$h_t = \hat\mu_t / (\sqrt{\hat\nu_t + \bar\epsilon} + \epsilon) + \lambda_t \theta_t, \qquad
      \theta_{t+1} = \theta_t - \eta_t \frac{\lVert\theta_t\rVert}{\lVert h_t\rVert} h_t$$

    with the means as in `adam`. The norms are those of leaves: of stacked layers, one for all of them.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      b1: $b_1$ in [0, 1), decay of the mean gradient.
      b2: $b_2$ in [0, 1), decay of the mean square.
      eps: $\epsilon \ge 0$, outside the root; a coordinate whose denominator is 0 moves by 0.
      eps_root: $\bar\epsilon \ge 0$, inside the root.
      weight_decay: $\lambda$, like the learning rate; decoupled, and multiplied by it.
      mask: which leaves decay: a glob over their paths, a tree of booleans, a prefix of one, or a function
        from the parameters to one of these; all of them by default.

    Returns:
      The rule; its `update` needs `params`; its state holds `count`, `mu` and `nu`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Source: You et al. 2020, arXiv:1904.00962, algorithm 2, without a bound of the norm.

    >>> rule, params = jl.lamb(0.1), jnp.array([3.0, 4.0])
    >>> updates, _ = rule.update(jnp.array([7.0, 0.0]), rule.init(params), params)
    >>> [round(x, 5) for x in updates.tolist()]
    [-0.5, -0.0]
    """
    direction = scale_by_adam(b1, b2, eps, eps_root)
    decay = add_decayed_weights(weight_decay, mask)
    return joined("lamb", direction, decay, scale_by_trust_ratio(), scale_by_learning_rate(learning_rate))
