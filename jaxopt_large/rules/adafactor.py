"""Adafactor: second moments as the product of rows and columns (Shazeer and Stern 2018)."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from .._hyperparameters import Count, Decay, LeafAxes, Mask, NonNegative, Positive, Rate, StateDtype, checked
from .._numerics import abs_square, as_scalar, bounded, like, over, safe_increment, scalar_dtype, times
from .._types import Rule
from ..leafwise import Stage, joined, lift, size_of
from ._factored import Factoring, factored_rms
from ._momentum import momentum as mean_of
from ._registry import rule
from .learning_rate import scale_by_learning_rate
from .weight_decay import add_decayed_weights

__all__ = ["adafactor", "scale_by_factored_rms"]

_LEAST_SCALE = 1e-3  # of a parameter's root mean square: leaves that begin at 0 must move


@checked
def scale_by_factored_rms(
    factored: bool = True,
    decay_rate: NonNegative = 0.8,
    step_offset: NonNegative = 0,
    min_dim_size_to_factor: Count = 128,
    epsilon: NonNegative = 1e-30,
    *,
    axes: LeafAxes = None,
) -> Rule:
    r"""Divides by the root of a factored mean square, see `adafactor`.

    Raises:
      ValueError: a value is out of range, or an axis outside a leaf.
    """
    ways = Factoring("adafactor", axes if factored else {"*": ()}, min_dim_size_to_factor)

    def decay(taken: Array) -> Array:
        n = jnp.maximum(safe_increment(taken).astype(scalar_dtype()) - as_scalar(step_offset), 1.0)
        return 1.0 - jnp.exp(-as_scalar(decay_rate) * jnp.log(n))

    return lift("scale_by_factored_rms", factored_rms(ways, epsilon, decay), chained=False)


@checked
def scale_by_block_rms(clipping_threshold: Positive | None = 1.0, by_parameter: bool = True) -> Rule:
    r"""Bounds the root mean square of each leaf's update, and makes it one of the parameter's.

    $$u \leftarrow \frac{u}{\max(1, \mathrm{rms}(u)/d)} \max(\mathrm{rms}(\theta), 10^{-3})$$

    Args:
      clipping_threshold: $d > 0$; None for no bound.
      by_parameter: whether there is the second factor.

    Raises:
      ValueError: the threshold is not positive.

    Source: Shazeer and Stern 2018, arXiv:1804.04235, algorithm 5 and section 8.
    """

    def measure(shared: Any, u: Array, p: Any, kept: Any) -> tuple[Any, Any]:
        del shared, kept
        of_update = None if clipping_threshold is None else jnp.sum(abs_square(u))
        return of_update, jnp.sum(abs_square(bounded(p, size_of(p)))) if by_parameter else None

    def step(shared: Any, u: Array, p: Any, kept: Any, sums: Any) -> tuple[Array, Any]:
        del shared, p
        if sums[0] is not None:
            rms = jnp.sqrt(sums[0] / size_of(u))
            u = over(u, jnp.maximum(1.0, rms / like(clipping_threshold, u)))
        if sums[1] is not None:
            u = times(jnp.maximum(jnp.sqrt(sums[1] / size_of(u)), _LEAST_SCALE), u)
        return u, kept

    stage = Stage(step, measure=measure, needs="axes", needs_params=by_parameter)
    return lift("scale_by_block_rms", stage, chained=False)


@rule
def adafactor(
    learning_rate: Rate | None = None,
    min_dim_size_to_factor: Count = 128,
    decay_rate: NonNegative = 0.8,
    decay_offset: NonNegative = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: Positive | None = 1.0,
    momentum: Decay | None = None,
    dtype_momentum: StateDtype = jnp.float32,
    weight_decay_rate: Rate | None = None,
    eps: NonNegative = 1e-30,
    factored: bool = True,
    weight_decay_mask: Mask = None,
    *,
    axes: LeafAxes = None,
) -> Rule:
    r"""Adafactor: Adam's second moment in the memory of a row and a column.

    With $b_t = 1 - t^{-\gamma}$ and means along the axes of a leaf:

    $$R_t = b_t R_{t-1} + (1-b_t) \mathrm{mean}_j(g_t^2 + \epsilon), \qquad
      C_t = b_t C_{t-1} + (1-b_t) \mathrm{mean}_i(g_t^2 + \epsilon)$$
    $$u_t = g_t / \sqrt{R_t C_t / \mathrm{mean}_i(R_t)}, \qquad
      \hat u_t = \frac{u_t}{\max(1, \mathrm{rms}(u_t)/d)} \eta_t \max(\mathrm{rms}(\theta_t), 10^{-3}), \qquad
      \theta_{t+1} = \theta_t - \hat u_t - \lambda \theta_t$$

    Leaves of one axis keep the whole mean square. Of leaves with more than two axes the last two are
    factored, so that layers and experts keep statistics of their own.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule; the paper's relative step is
        `lambda t: jnp.minimum(1e-2, 1 / jnp.sqrt(t + 1))`. None leaves it out.
      min_dim_size_to_factor: a leaf of which one of the two axes is shorter keeps the whole mean square.
      decay_rate: $\gamma \ge 0$.
      decay_offset: $t$ counts from this step on, and is 1 before: for states that have that many steps behind
        them, in fine-tuning.
      multiply_by_parameter_scale: whether updates have the parameter's size; else they have that of $\eta$.
      clipping_threshold: $d > 0$, bound of the root mean square of a leaf's update; None for none.
      momentum: in [0, 1): a mean of the updates; None for none.
      dtype_momentum: its floating dtype.
      weight_decay_rate: $\lambda$, a number >= 0 or a schedule, not multiplied by the rate; None for none.
      eps: $\epsilon \ge 0$.
      factored: whether leaves are factored at all.
      weight_decay_mask: which leaves decay, see `adamw`.
      axes: glob -> the two axes that are factored in the leaves there, or () for none; the first match wins.

    Returns:
      The rule; its state holds `count`, `v_row`, `v_col` and `v`, and `mu` where asked for.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Differs: of leaves with more than two axes optax factors the two longest, be they layers or experts;
    PyTorch takes $\epsilon^2$ for the least mean square.

    Source: Shazeer and Stern 2018, arXiv:1804.04235, algorithms 4 and 5; names as in optax.

    >>> state = jl.adafactor(1e-2).init({"layers": jnp.zeros((4, 256, 128))})
    >>> state[0].v_row["layers"].shape, state[0].v_col["layers"].shape, state[0].v["layers"].shape
    ((4, 128), (4, 256), (1,))
    """
    links = [
        scale_by_factored_rms(factored, decay_rate, decay_offset, min_dim_size_to_factor, eps, axes=axes)
    ]
    if clipping_threshold is not None or multiply_by_parameter_scale:
        links.append(scale_by_block_rms(clipping_threshold, multiply_by_parameter_scale))
    if learning_rate is not None:
        links.append(scale_by_learning_rate(learning_rate, flip_sign=False))
    if momentum is not None:
        links.append(mean_of(momentum, False, dtype_momentum))
    if weight_decay_rate is not None:
        links.append(add_decayed_weights(weight_decay_rate, weight_decay_mask))
    return joined("adafactor", *links, scale_by_learning_rate(1.0))
