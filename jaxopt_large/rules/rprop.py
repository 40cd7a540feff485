"""Rprop: steps that grow while the sign holds, for full batches (Riedmiller and Braun 1993)."""

import numbers
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from .._errors import Range, message
from .._hyperparameters import NonNegative, checked
from .._numerics import like, times
from .._types import Rule, Updates
from ..leafwise import Stage, constant, joined, lift, zeros
from ._registry import rule
from .learning_rate import scale_by_learning_rate

__all__ = ["rprop", "scale_by_rprop"]


Shrink = Annotated[Any, Range("a number in (0, 1)", lambda x: 0 < x < 1)]
Grow = Annotated[Any, Range("a number > 1", lambda x: x > 1)]


class ScaleByRpropState(NamedTuple):
    """State of Rprop."""

    step_sizes: Updates  # of the next step, float32, shapes of the parameters
    prev_updates: Updates  # the gradient before, 0 where its sign turned, float32, shapes of the parameters


@checked
def scale_by_rprop(
    learning_rate: NonNegative,
    eta_minus: Shrink = 0.5,
    eta_plus: Grow = 1.2,
    min_step_size: NonNegative = 1e-6,
    max_step_size: NonNegative = 50.0,
) -> Rule:
    r"""The step of Rprop, to be subtracted: see `rprop`.

    Raises:
      ValueError: a value is out of range.
    """

    if _is_number(min_step_size) and _is_number(max_step_size) and min_step_size > max_step_size:
        wrong = f"min_step_size is larger than max_step_size, got {min_step_size!r} and {max_step_size!r}"
        raise ValueError(message("scale_by_rprop", wrong))

    def step(shared: Any, g: Array, p: Any, kept: ScaleByRpropState) -> tuple[Array, Any]:
        del shared, p
        low, high, down, up = (like(x, g) for x in (min_step_size, max_step_size, eta_minus, eta_plus))
        # of signs, whose product does not vanish
        alike = (jnp.sign(g) * jnp.sign(kept.prev_updates).conj()).real
        grown = kept.step_sizes * jnp.where(alike > 0, up, down)
        size = jnp.where(alike == 0, kept.step_sizes, jnp.clip(grown, low, high))
        seen = jnp.where(alike < 0, jnp.zeros((), g.dtype), g)
        return times(size, jnp.sign(seen)), ScaleByRpropState(size, seen)

    state = ScaleByRpropState(constant(learning_rate, real=True), zeros())
    return lift("scale_by_rprop", Stage(step, state), chained=False)


@rule
def rprop(
    learning_rate: NonNegative,
    eta_minus: Shrink = 0.5,
    eta_plus: Grow = 1.2,
    min_step_size: NonNegative = 1e-6,
    max_step_size: NonNegative = 50.0,
) -> Rule:
    r"""Rprop: only signs of gradients count, and each coordinate has a step size of its own.

    With $s_t = \mathrm{sign}(g_t)\,\mathrm{sign}(g_{t-1})$:

    $$\delta_t = \mathrm{clip}(\delta_{t-1} \cdot \{\eta^+ \text{ if } s_t > 0,\;
      \eta^- \text{ if } s_t < 0\}, \delta_{\min}, \delta_{\max}), \qquad
      \theta_{t+1} = \theta_t - \delta_t \,\mathrm{sign}(g_t)$$

    Where the sign turned, the gradient counts as 0: nothing moves, and the step after keeps its size.

    Args:
      learning_rate: $\delta_0 \ge 0$, the size of the first step: a number or an array, no schedule.
      eta_minus: $\eta^-$ in (0, 1).
      eta_plus: $\eta^+ > 1$.
      min_step_size: $\delta_{\min} \ge 0$.
      max_step_size: $\delta_{\max} \ge 0$.

    Returns:
      The rule; its state holds `step_sizes` and `prev_updates`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Differs: optax 0.2.8 moves by the step that the gradient before had given, one step late.

    Source: Riedmiller and Braun 1993; Igel and Hüsken 2000, "Improving the Rprop learning algorithm", for
    what happens where a sign turned (iRprop-).

    >>> rule = jl.rprop(0.5)
    >>> state, moved = rule.init(jnp.float32(0.0)), []
    >>> for gradient in (3.0, 1.0, -1.0, -1.0):
    ...     updates, state = rule.update(jnp.float32(gradient), state)
    ...     moved.append(round(float(updates), 4) + 0.0)
    >>> moved
    [-0.5, -0.6, 0.0, 0.3]
    """
    direction = scale_by_rprop(learning_rate, eta_minus, eta_plus, min_step_size, max_step_size)
    return joined("rprop", direction, scale_by_learning_rate(1.0))


def _is_number(x: Any) -> bool:
    return isinstance(x, numbers.Real)
