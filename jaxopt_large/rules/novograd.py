"""NovoGrad: one second moment for each leaf (Ginsburg et al. 2019)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from .._hyperparameters import Decay, NonNegative, Rate, StateDtype, checked
from .._numerics import abs_square, as_decay, bounded, divide, ema, like, plus, times
from .._types import Rule, Updates
from ..leafwise import Stage, count, joined, lift, shaped, size_of, zeros
from ._registry import rule
from .learning_rate import scale_by_learning_rate

__all__ = ["novograd", "scale_by_novograd"]


class ScaleByNovogradState(NamedTuple):
    """State of NovoGrad."""

    count: Int[Array, ""]  # steps taken
    mu: Updates  # decayed sum of normalized gradients, float32, shapes of the parameters
    nu: Updates  # mean squared norm of each leaf's gradient, float32, shape ()


@checked
def scale_by_novograd(
    b1: Decay = 0.9,
    b2: Decay = 0.25,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    weight_decay: NonNegative = 0.0,
    mu_dtype: StateDtype = None,
) -> Rule:
    r"""The direction of NovoGrad, see `novograd`.

    Raises:
      ValueError: b1 or b2 is outside [0, 1), another value negative, or the dtype not floating.
    """
    d1, d2 = as_decay(b1), as_decay(b2)

    def measure(is_first: Array, g: Array, p: Array, kept: ScaleByNovogradState) -> Array:
        del is_first, p, kept
        return jnp.sum(abs_square(bounded(g, size_of(g))))

    def step(
        is_first: Array, g: Array, p: Array, kept: ScaleByNovogradState, square: Array
    ) -> tuple[Array, Any]:
        nu = jnp.where(is_first, square, ema(kept.nu, square, d2))
        root = jnp.sqrt(plus(nu, eps_root))
        normalized = divide(bounded(g, size_of(g)), plus(root, eps), eps)
        mu = times(like(d1, g), kept.mu) + normalized + times(like(weight_decay, g), p)
        return mu, kept._replace(mu=mu, nu=nu)

    state = ScaleByNovogradState(count(), zeros(mu_dtype), shaped(lambda shape: (), real=True))
    first = lambda kept: kept.count == 0  # noqa: E731
    stage = Stage(step, state, first, measure, needs="axes", needs_params=True)
    return lift("scale_by_novograd", stage, chained=False)


@rule
def novograd(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.25,
    eps: NonNegative = 1e-6,
    eps_root: NonNegative = 0.0,
    weight_decay: NonNegative = 0.0,
) -> Rule:
    r"""NovoGrad: momentum of gradients that are normalized leaf by leaf.

    $$\nu_t = b_2 \nu_{t-1} + (1-b_2) \lVert g_t \rVert^2, \qquad
      \mu_t = b_1 \mu_{t-1} + \frac{g_t}{\sqrt{\nu_t + \bar\epsilon} + \epsilon} + \lambda \theta_t, \qquad
      \theta_{t+1} = \theta_t - \eta_t \mu_t$$

    with $\nu_1 = \lVert g_1 \rVert^2$.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      b1: $b_1$ in [0, 1), decay of the momentum.
      b2: $b_2$ in [0, 1), decay of the mean squared norm.
      eps: $\epsilon \ge 0$, outside the root; a coordinate whose denominator is 0 moves by 0.
      eps_root: $\bar\epsilon \ge 0$, inside the root.
      weight_decay: $\lambda \ge 0$, inside the momentum.

    Returns:
      The rule; its `update` needs `params`; its state holds `count`, `mu` and `nu`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Differs: the defaults are optax's; the paper has decays of 0.95 and 0.98.

    Source: Ginsburg et al. 2019, arXiv:1905.11286, algorithm 1.

    >>> rule, params = jl.novograd(1.0, eps=0.0), jnp.zeros(2)
    >>> updates, state = rule.update(jnp.array([3.0, 4.0]), rule.init(params), params)
    >>> [round(x, 4) for x in updates.tolist()]
    [-0.6, -0.8]
    """
    direction = scale_by_novograd(b1, b2, eps, eps_root, weight_decay)
    return joined("novograd", direction, scale_by_learning_rate(learning_rate))
