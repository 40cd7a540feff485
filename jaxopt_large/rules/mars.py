"""MARS: Adam on gradients whose variance is reduced (Yuan et al. 2024)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from .._hyperparameters import Decay, Mask, NonNegative, Positive, Rate, StateDtype, checked
from .._numerics import (
    abs_square,
    as_decay,
    bias_corrections,
    bounded,
    complement,
    divide,
    ema,
    like,
    over,
    plus,
    times,
)
from .._types import Rule, Updates
from ..leafwise import Stage, count, joined, lift, size_of, zeros
from ._registry import rule
from .learning_rate import scale_by_learning_rate
from .weight_decay import decay_of

__all__ = ["mars", "scale_by_mars"]


class ScaleByMarsState(NamedTuple):
    """State of MARS."""

    count: Int[Array, ""]  # steps taken
    mu: Updates  # mean corrected gradient, float32, shapes of the parameters
    nu: Updates  # mean square of it, float32, shapes of the parameters
    previous_gradient: Updates  # float32, shapes of the parameters


@checked
def scale_by_mars(
    b1: Decay = 0.95,
    b2: Decay = 0.99,
    eps: NonNegative = 1e-8,
    gamma: NonNegative = 0.025,
    max_norm: Positive = 1.0,
    mu_dtype: StateDtype = None,
) -> Rule:
    r"""The direction of MARS, see `mars`.

    Raises:
      ValueError: b1 or b2 is outside [0, 1), another value out of range, or the dtype not floating.
    """
    d1, d2 = as_decay(b1), as_decay(b2)

    def corrected(g: Array, kept: ScaleByMarsState) -> Array:
        g, d = bounded(g, 4 * size_of(g)), like(d1, g)
        return bounded(g + times(like(gamma, g) * d / complement(d), g - kept.previous_gradient), size_of(g))

    def corrections(kept: ScaleByMarsState) -> tuple[Array, ...]:
        return bias_corrections(kept.count, d1, d2)

    def measure(shared: Any, g: Array, p: Any, kept: ScaleByMarsState) -> Array:
        del shared, p
        return jnp.sum(abs_square(corrected(g, kept)))

    def step(
        shared: tuple[Array, ...], g: Array, p: Any, kept: ScaleByMarsState, square: Array
    ) -> tuple[Array, Any]:
        del p
        limit, norm = like(max_norm, g), jnp.sqrt(square)
        c = over(corrected(g, kept), jnp.maximum(norm / limit, 1.0))
        mu, nu = ema(kept.mu, c, d1), ema(kept.nu, abs_square(c), d2)
        update = divide(over(mu, shared[0]), plus(jnp.sqrt(nu / shared[1]), eps), eps)
        return update, kept._replace(mu=mu, nu=nu, previous_gradient=bounded(g, 4 * size_of(g)))

    state = ScaleByMarsState(count(), zeros(mu_dtype), zeros(real=True), zeros())
    return lift("scale_by_mars", Stage(step, state, corrections, measure, needs="axes"), chained=False)


@rule
def mars(
    learning_rate: Rate,
    b1: Decay = 0.95,
    b2: Decay = 0.99,
    eps: NonNegative = 1e-8,
    gamma: NonNegative = 0.025,
    max_norm: Positive = 1.0,
    mu_dtype: StateDtype = None,
    weight_decay: Rate = 0.0,
    mask: Mask = None,
) -> Rule:
    r"""MARS-AdamW: the gradient corrected by how it changed, in its approximate form.

    $$c_t = g_t + \gamma \frac{b_1}{1-b_1} (g_t - g_{t-1}), \qquad
      \tilde c_t = c_t / \max(1, \lVert c_t \rVert / c)$$

    and AdamW on $\tilde c_t$, with the norm of each leaf and $g_0 = 0$. The exact form has $g_{t-1}$ of this
    step's batch, which needs a second gradient.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      b1: $b_1$ in [0, 1), decay of the mean gradient.
      b2: $b_2$ in [0, 1), decay of the mean square.
      eps: $\epsilon \ge 0$, outside the root; a coordinate whose denominator is 0 moves by 0.
      gamma: $\gamma \ge 0$, how much of the change counts.
      max_norm: $c > 0$, the largest norm of a leaf's corrected gradient.
      mu_dtype: floating dtype of `mu`; by default float32 (float64 for float64).
      weight_decay: $\lambda$, like the learning rate; decoupled, and multiplied by it.
      mask: which leaves decay: a glob over their paths, a tree of booleans, a prefix of one, or a function
        from the parameters to one of these; all of them by default.

    Returns:
      The rule; its state holds `count`, `mu`, `nu` and `previous_gradient`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Differs: $g_{t-1}$ is that of the batch before, the paper's approximate form; $g_0 = 0$, as in the
    authors' program, lengthens the first $c_1$; vectors are moved by it too.

    Source: Yuan et al. 2024, arXiv:2411.10438, algorithm 2 (MARS-AdamW, approximate).

    >>> rule = jl.mars(0.5, eps=0.0)
    >>> updates, state = rule.update(jnp.array([2.0, -2.0]), rule.init(jnp.zeros(2)))
    >>> [round(x, 5) for x in updates.tolist()]
    [-0.5, 0.5]
    """
    direction = scale_by_mars(b1, b2, eps, gamma, max_norm, mu_dtype)
    return joined("mars", direction, *decay_of(weight_decay, mask), scale_by_learning_rate(learning_rate))
