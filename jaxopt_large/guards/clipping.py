"""Clipping leaf by leaf: by norm, by root mean square, unit by unit; of gradients and of updates."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array

from .._errors import message
from .._hyperparameters import LeafAxes, NonNegative, Positive, checked
from .._numerics import abs_square, bounded, like, over, times
from .._paths import first_match
from .._types import Rule, Updates, make_rule
from .._wrapped import Wrapped, followed_by
from ..leafwise import Stage, along, lift, shape_of, size_of, sum_along
from ..safety import clip_by_global_norm

_TINY = 1e-6  # the least norm of a unit's gradient, as optax has it


@checked
def clip_per_leaf(max_norm: Positive) -> Rule:
    r"""Scales each leaf's gradient down to a largest norm: $u = g \min(1, c / \lVert g \rVert)$.

    One leaf's spike leaves the others as they are. A leaf with a NaN becomes NaN.

    Args:
      max_norm: $c > 0$, for every leaf.

    Returns:
      The rule; it keeps no state.

    Raises:
      ValueError: max_norm is not positive.
      TypeError: max_norm is not a number.

    >>> rule = jl.clip_per_leaf(1.0)
    >>> updates, _ = rule.update({"a": jnp.array([3.0, 4.0]), "b": jnp.array([0.5])}, rule.init(None))
    >>> [round(x, 4) for x in updates["a"].tolist()], updates["b"].tolist()
    ([0.6, 0.8], [0.5])
    """

    def step(shared: Any, g: Array, p: Any, kept: Any, square: Array) -> tuple[Array, Any]:
        del shared, p
        return _shrunk(g, jnp.sqrt(square), like(max_norm, g)), kept

    stage = Stage(step, measure=square, needs="axes")
    return _stateless(lift("clip_per_leaf", stage, chained=False))


@checked
def clip_by_block_rms(threshold: Positive) -> Rule:
    r"""Scales each leaf down to a largest root mean square: $u = g / \max(1, \mathrm{RMS}(g) / d)$.

    After a rule's direction this is the update clipping of Adafactor.

    Args:
      threshold: $d > 0$.

    Returns:
      The rule; it keeps no state.

    Raises:
      ValueError: threshold is not positive.
      TypeError: threshold is not a number.

    Source: Shazeer and Stern 2018, arXiv:1804.04235, section 6.

    >>> rule = jl.clip_by_block_rms(1.0)
    >>> updates, _ = rule.update(jnp.array([2.0, -2.0]), rule.init(None))
    >>> updates.tolist()
    [1.0, -1.0]
    """

    def step(shared: Any, g: Array, p: Any, kept: Any, square: Array) -> tuple[Array, Any]:
        del shared, p
        length = jnp.sqrt(square / max(size_of(g), 1)) / like(threshold, g)
        return over(g, jnp.where(jnp.isfinite(length), jnp.maximum(length, 1.0), jnp.nan)), kept

    stage = Stage(step, measure=square, needs="axes")
    return _stateless(lift("clip_by_block_rms", stage, chained=False))


@checked
def adaptive_grad_clip(
    clipping: Positive,
    eps: NonNegative = 1e-3,
    axis: Any = None,
    *,
    axes: LeafAxes | None = None,
) -> Rule:
    r"""Clips each unit's gradient to a share of the unit's weights.

    $$g_j \leftarrow g_j \min\!\left(1,
      \lambda \frac{\max(\lVert\theta_j\rVert, \epsilon)}{\lVert g_j \rVert}\right)$$

    A unit is what one output is made of: a vector as a whole, a column of a matrix, the kernel of one output
    channel of a convolution in two or three dimensions, as optax has them. Of a stack of layers say the axes.

    Args:
      clipping: $\lambda > 0$.
      eps: $\epsilon \ge 0$, so that units that begin with zeros can move.
      axis: the axis or axes that a unit's norm is over, of every leaf, as optax has it.
      axes: glob -> the axes that a unit's norm is over, such as {"layers/*": [1]} for stacked matrices.

    Returns:
      The rule; its `update` needs `params`; it keeps no state.

    Raises:
      ValueError: a value is out of range, or a leaf has more than five dimensions and no axes.
      TypeError: a value is not a number, or the axis is none.

    Source: Brock et al. 2021, arXiv:2102.06171, equation 3.

    >>> rule, params = jl.adaptive_grad_clip(0.1), jnp.array([3.0, 4.0])
    >>> updates, _ = rule.update(jnp.array([30.0, 40.0]), rule.init(params), params)
    >>> [round(x, 4) for x in updates.tolist()]
    [0.3, 0.4]
    """

    every = None if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
    if every is not None and not all(type(n) is int for n in every):
        allowed = "a whole number, or several"
        raise TypeError(message("adaptive_grad_clip", f"axis is no axis, got {axis!r}", allowed=allowed))

    def of(x: Array, place: Any) -> tuple[int, ...]:
        return _unit_axes(shape_of(x), place)

    def measure(shared: Any, g: Array, p: Array, kept: Any, place: Any = None) -> tuple[Array, Array]:
        del shared, kept
        unit = of(g, place)
        return tuple(sum_along(abs_square(bounded(x, size_of(x))), unit) for x in (g, p))  # type: ignore[return-value]

    def step(shared: Any, g: Array, p: Array, kept: Any, sums: Any, place: Any = None) -> tuple[Array, Any]:
        del shared, p
        unit = of(g, place)
        norm, weight = (along(jnp.sqrt(total), unit, g) for total in sums)
        most = like(clipping, g) * jnp.maximum(weight, like(eps, g))
        factor = jnp.where(norm > most, most / jnp.maximum(norm, _TINY), jnp.ones((), norm.dtype))
        return times(jnp.where(jnp.isfinite(norm), factor, jnp.nan), g), kept

    def by_path(path: str) -> Any:
        glob = None if axes is None else first_match(list(axes), path)
        return every if axes is None or glob is None else tuple(axes[glob])

    stage = Stage(step, measure=measure, needs="axes", needs_params=True, by_path=by_path)
    return _stateless(lift("adaptive_grad_clip", stage, chained=False))


class ClipUpdatesState(Wrapped):
    """State of `clip_updates`."""


@checked
def clip_updates(rule: Any, max_norm: Positive | None = None, *, max_rms: Positive | None = None) -> Rule:
    """Clips what a rule makes of the gradient, not the gradient: its moments see everything.

    Args:
      rule: any rule.
      max_norm: the largest norm of all updates together, learning rate included.
      max_rms: the largest root mean square of each leaf's update; one of the two.

    Returns:
      The rule; its state is `ClipUpdatesState(inner, own)`.

    Raises:
      ValueError: a value is not positive.
      TypeError: rule is not a rule, or neither or both of the values are given.

    >>> rule, params = jl.clip_updates(jl.sgd(1.0), 1.0), jnp.zeros(2)
    >>> updates, _ = rule.update(jnp.array([30.0, 40.0]), rule.init(params), params)
    >>> [round(x, 4) for x in updates.tolist()]
    [-0.6, -0.8]
    """
    if (max_norm is None) == (max_rms is None):
        wrong = f"one bound is needed, got max_norm={max_norm!r}, max_rms={max_rms!r}"
        raise TypeError(message("clip_updates", wrong))
    stage = clip_by_block_rms(max_rms) if max_norm is None else clip_by_global_norm(max_norm)
    return followed_by("clip_updates", rule, stage, ClipUpdatesState, each_step=False)


def _stateless(rule: Rule) -> Rule:
    """A rule that keeps nothing takes any state, and gives it back, as optax's do."""

    def update(updates: Updates, state: Any, params: Any = None, **extra: Any) -> tuple[Updates, Any]:
        return rule.update(updates, optax.EmptyState(), params, **extra)[0], state

    return make_rule(rule.init, update)


def square(shared: Any, g: Array, p: Any, kept: Any) -> Array:
    """What a leaf adds to a norm: a stage's `measure`."""
    del shared, p, kept
    return jnp.sum(abs_square(bounded(g, size_of(g))))


def _shrunk(g: Array, length: Array, most: Any) -> Array:
    """The gradient at a length of `most` at most; NaN where its length is not finite."""
    factor = jnp.where(length > most, most / length, jnp.ones((), length.dtype))
    return times(jnp.where(jnp.isfinite(length), factor, jnp.nan), g)


def _unit_axes(shape: Sequence[int], said: tuple[int, ...] | None) -> tuple[int, ...]:
    """The axes of one unit's weights."""
    if said is not None:
        return tuple(sorted(axis % len(shape) for axis in said))
    if sum(n != 1 for n in shape) <= 1:
        return tuple(range(len(shape)))
    if len(shape) in (2, 3):
        return (0,)
    if len(shape) in (4, 5):
        return tuple(range(len(shape) - 1))
    wrong = f"a leaf has {len(shape)} dimensions, got {tuple(shape)}"
    raise ValueError(message("adaptive_grad_clip", wrong, do="Say the axes of a unit: axes={glob: [...]}"))
