"""Cautious updates: only where they agree with the gradient (Liang et al. 2024)."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from .._hyperparameters import Positive, checked
from .._numerics import times
from .._types import Rule
from .._wrapped import Wrapped, followed_by
from ..leafwise import Stage, lift, size_of

__all__ = ["cautious"]


class CautiousState(Wrapped):
    """State of `cautious`."""


@checked
def cautious(rule: Any, *, least: Positive = 1e-3) -> Rule:
    r"""Leaves out coordinates of an update that go against the gradient, and makes the others longer.

    With $u_t$ the rule's update, which is added to the parameters, and means over each leaf:

    $$m_t = [u_t g_t < 0], \qquad u_t \leftarrow u_t m_t / \max(\mathrm{mean}(m_t), \epsilon)$$

    Weight decay inside the rule is left out where the step is; to keep it, write
    `decoupled(cautious(rule), weight_decay)`.

    Args:
      rule: any rule.
      least: $\epsilon > 0$, so that few coordinates are not made too long.

    Returns:
      The rule; its state is `CautiousState(inner, own)`.

    Raises:
      TypeError: rule is not a rule.
      ValueError: least is not positive.

    Source: Liang et al. 2024, arXiv:2411.16085, algorithm 2.

    >>> rule, params = jl.cautious(jl.sgd(1.0, momentum=0.5)), jnp.zeros(2)
    >>> state = rule.init(params)
    >>> _, state = rule.update(jnp.array([4.0, 4.0]), state, params)
    >>> updates, state = rule.update(jnp.array([1.0, -1.0]), state, params)
    >>> (updates + 0.0).tolist()  # momentum alone would give -3 and -1
    [-6.0, 0.0]
    """

    def agrees(u: Array, g: Array) -> Array:
        # of signs, whose product does not vanish
        return ((jnp.sign(u) * jnp.sign(g).conj()).real < 0).astype(u.real.dtype)

    def measure(shared: Any, u: Array, g: Array, kept: Any) -> Array:
        del shared, kept
        return jnp.sum(agrees(u, g))

    def step(shared: Any, u: Array, g: Array, kept: Any, total: Array) -> tuple[Array, Any]:
        del shared
        share = jnp.maximum(total / max(size_of(u), 1), least)
        return times(agrees(u, g) / share, u), kept

    stage = lift("cautious", Stage(step, measure=measure, needs="axes", needs_params=True), chained=False)
    return followed_by("cautious", rule, stage, CautiousState, lambda gradients, params: gradients)
