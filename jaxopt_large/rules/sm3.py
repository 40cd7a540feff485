"""SM3: second moments bounded by one number for each index of each axis (Anil et al. 2019)."""

import functools
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from .._errors import Range
from .._hyperparameters import Decay, NonNegative, Rate, checked
from .._numerics import abs_square, as_decay, bounded, ema, like, plus, times
from .._types import Rule, Updates
from ..leafwise import Largest, Stage, along, joined, lift, max_along, shape_of, shaped, zeros
from ._registry import rule
from .learning_rate import scale_by_learning_rate

__all__ = ["scale_by_sm3", "sm3"]

Share = Annotated[Any, Range("a number in [0, 1]", lambda x: 0 <= x <= 1)]

_TERMS = 2**20  # largest squares that a bound holds before it saturates


class ScaleBySM3State(NamedTuple):
    """State of SM3."""

    mu: Updates  # of each leaf a bound for each axis, float32, shape [length of the axis]
    nu: Updates  # mean direction, float32, shapes of the parameters


@checked
def scale_by_sm3(b1: Decay = 0.9, b2: Share = 1.0, eps: NonNegative = 1e-8) -> Rule:
    r"""The direction of SM3, see `sm3`.

    With $b_2 < 1$ the bound is of a mean: $\nu_t = b_2 \min_r \mu_r + (1-b_2) g_t^2$.

    Raises:
      ValueError: b1 is outside [0, 1), b2 outside [0, 1], or eps negative.
    """
    d1 = as_decay(b1)

    def others(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
        return tuple(d for d in range(len(shape)) if d != axis)

    def bound(g: Array, kept: ScaleBySM3State) -> Array:
        shape = shape_of(g)
        if len(shape) < 2:
            least = kept.mu[0]
        else:
            rows = [along(mu, others(shape, axis), g) for axis, mu in enumerate(kept.mu)]
            least = functools.reduce(jnp.minimum, jnp.broadcast_arrays(*rows))
        square, kept_share = abs_square(bounded(g, _TERMS)), like(b2, g)
        fresh = jnp.where(kept_share == 1, 1.0, 1.0 - kept_share).astype(square.dtype)
        total = kept_share * least + fresh * square
        return jnp.minimum(total, jnp.finfo(total.dtype).max)

    def measure(shared: Any, g: Array, p: Any, kept: ScaleBySM3State) -> tuple[Largest, ...]:
        del shared, p
        shape = shape_of(g)
        if len(shape) < 2:
            return ()
        total = bound(g, kept)
        return tuple(max_along(total, others(shape, axis)) for axis in range(len(shape)))

    def step(
        shared: Any, g: Array, p: Any, kept: ScaleBySM3State, most: tuple[Largest, ...]
    ) -> tuple[Array, Any]:
        del shared, p
        total, g = bound(g, kept), bounded(g, _TERMS)
        none = total == 0
        root = jnp.sqrt(plus(jnp.where(none, jnp.ones((), total.dtype), total), eps))
        nu = ema(kept.nu, times(jnp.where(none, jnp.zeros((), root.dtype), 1.0 / root), g), d1)
        return nu, ScaleBySM3State(tuple(x.value for x in most) or (total,), nu)

    bounds = shaped(lambda shape: tuple((n,) for n in shape) if len(shape) > 1 else (shape,), real=True)
    stage = Stage(step, ScaleBySM3State(bounds, zeros()), measure=measure, needs="axes")
    return lift("scale_by_sm3", stage, chained=False)


@rule
def sm3(learning_rate: Rate, momentum: Decay = 0.9) -> Rule:
    r"""SM3-II with momentum: Adagrad in the memory of an SGD.

    With one bound $\mu_r$ for each index $r$ of each axis, and $S_r$ the elements there:

    $$\nu_t(i) = \min_{r: i \in S_r} \mu_{t-1}(r) + g_t(i)^2, \qquad \mu_t(r) = \max_{i \in S_r} \nu_t(i)$$
    $$m_t = \beta m_{t-1} + (1-\beta) g_t / \sqrt{\nu_t + 10^{-8}}, \qquad
      \theta_{t+1} = \theta_t - \eta_t m_t$$

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      momentum: $\beta$ in [0, 1).

    Returns:
      The rule; its state holds `mu`, an array for each axis of a leaf, and `nu`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Source: Anil et al. 2019, arXiv:1901.11150, algorithm SM3-II.

    >>> state = jl.sm3(0.1).init({"w": jnp.zeros((4, 6))})
    >>> [bound.shape for bound in state[0].mu["w"]]
    [(4,), (6,)]
    """
    return joined("sm3", scale_by_sm3(momentum), scale_by_learning_rate(learning_rate))
