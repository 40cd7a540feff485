"""SGD with Polyak's step size: the rate from the loss and the gradient's norm (Loizou et al. 2021)."""

from typing import Annotated, Any

import jax.numpy as jnp
from jaxtyping import Array

from .._hyperparameters import NonNegative, Number, OneOf, Rate, checked
from .._numerics import abs_square, as_scalar, scalar_dtype, times
from .._types import Rule
from ..leafwise import Stage, joined, lift
from ._registry import rule
from .learning_rate import scale_by_learning_rate

__all__ = ["polyak_sgd", "scale_by_polyak"]

_FLAT = 2.0**-52  # a squared norm up to here is that of a minimum, as in optax


@checked
def scale_by_polyak(
    f_min: Number = 0.0,
    max_learning_rate: NonNegative = 1.0,
    eps: NonNegative = 0.0,
    variant: Annotated[str, OneOf("sps", "sps+")] = "sps",
) -> Rule:
    r"""Multiplies by Polyak's step size, see `polyak_sgd`.

    Raises:
      ValueError: a value is negative or not finite, or the variant unknown.
    """

    def gap(kept: Any, *, value: Any) -> Array:
        del kept
        found = as_scalar(value) - as_scalar(f_min)
        return jnp.maximum(found, 0.0) if variant == "sps+" else found

    def measure(gap: Array, g: Array, p: Any, kept: Any) -> Array:
        del gap, p, kept
        return jnp.sum(abs_square(g))

    def combine(gap: Array, kept: Any, total: Array) -> tuple[Array, Any]:
        total = total.astype(scalar_dtype()) + as_scalar(eps)
        is_flat = total <= _FLAT
        size = jnp.minimum(gap / jnp.where(is_flat, 1.0, total), as_scalar(max_learning_rate))
        return jnp.where(is_flat, 0.0, size), kept

    def step(size: Array, g: Array, p: Any, kept: Any, sums: Any) -> tuple[Array, Any]:
        del p, sums
        return times(size, g), kept

    stage = Stage(step, shared=gap, measure=measure, combine=combine, extra=("value",))
    return lift("scale_by_polyak", stage, chained=False)


@rule
def polyak_sgd(
    max_learning_rate: NonNegative = 1.0,
    scaling: Rate = 1.0,
    f_min: Number = 0.0,
    eps: NonNegative = 0.0,
    variant: Annotated[str, OneOf("sps", "sps+")] = "sps",
) -> Rule:
    r"""SGD with Polyak's step size.

    $$\theta_{t+1} = \theta_t - s_t \min\!\left(\frac{f(\theta_t) - f^\star}{\lVert g_t \rVert^2 + \epsilon},
      \eta_{\max}\right) g_t$$

    with the norm over all leaves, of $s_t g_t$; nothing moves where its square is below $2^{-52}$. Call
    `update(grads, state, params, value=loss)`.

    Args:
      max_learning_rate: $\eta_{\max} \ge 0$, a number or an array of shape ().
      scaling: $s$, a number >= 0, or a schedule.
      f_min: $f^\star$, a lower bound of the loss.
      eps: $\epsilon \ge 0$.
      variant: "sps", which climbs where the loss is below $f^\star$, or "sps+", where the gap is 0 there.

    Returns:
      The rule; it keeps no state for constants. Its `update` needs `value`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Source: Loizou et al. 2021, arXiv:2002.10542, equation 4; Garrigos et al. 2023, arXiv:2307.14528 ("sps+").

    >>> rule = jl.polyak_sgd()
    >>> params = jnp.float32(3.0)  # of the loss x^2
    >>> updates, _ = rule.update(2 * params, rule.init(params), params, value=params**2)
    >>> float(updates)
    -1.5
    """
    step_size = scale_by_polyak(f_min, max_learning_rate, eps, variant)
    return joined("polyak_sgd", scale_by_learning_rate(scaling), step_size)
