"""Up, then down: schedules that fall once."""

import math
from collections.abc import Callable
from typing import Annotated, Any

import jax.numpy as jnp
from jaxtyping import Array

from .._errors import message
from .._hyperparameters import NonNegative, OneOf, Positive, checked
from .._numerics import as_scalar, like
from .._types import Scalar, Schedule
from ._values import between, is_known, ramp, steps_of

# of the way from the peak to the end, how much is behind at the part u of the time
_WAYS: dict[str, Callable[[Array], Array]] = {
    "linear": lambda u: u,
    "cosine": lambda u: (1.0 - jnp.cos(math.pi * u)) / 2.0,
    "sqrt": jnp.sqrt,
    "square": jnp.square,
}
SHAPES = (*_WAYS, "exponential")


@checked
def warmup_stable_decay(
    peak_value: NonNegative,
    *,
    warmup_steps: NonNegative,
    stable_steps: NonNegative,
    decay_steps: NonNegative,
    init_value: NonNegative = 0.0,
    end_value: NonNegative = 0.0,
    shape: Annotated[str, OneOf(*SHAPES)] = "linear",
) -> Schedule:
    r"""Linear up, constant, then down: the trapezoid, and its relatives with another fall.

    With $w$, $s$, $d$ the three lengths, $p$ the peak, $u = \mathrm{clip}((t - w - s)/d, 0, 1)$:

    $$\eta(t) = \eta_0 + (p - \eta_0) \min(1, t/w) \quad (t < w + s), \qquad
      \eta(t) = p - (p - \eta_1) f(u) \quad (t \ge w + s)$$

    | `shape` | $f(u)$ |
    |---|---|
    | `"linear"` | $u$ |
    | `"cosine"` | $(1 - \cos \pi u)/2$ |
    | `"sqrt"` | $\sqrt u$, fast at first |
    | `"square"` | $u^2$, slow at first |
    | `"exponential"` | none: $\eta(t) = p (\eta_1/p)^u$ |

    Args:
      peak_value: $p \ge 0$, held for `stable_steps`.
      warmup_steps: $w \ge 0$, steps from `init_value` to the peak.
      stable_steps: $s \ge 0$.
      decay_steps: $d \ge 0$, steps from the peak to `end_value`, which holds from then on.
      init_value: $\eta_0$, at step 0.
      end_value: $\eta_1$, at the end.
      shape: of the fall.

    Raises:
      ValueError: a value is negative or not finite, the shape unknown, or it is exponential and the peak
        or the end is 0.

    Source: Hägele et al. 2024, arXiv:2405.18392; the linear fall and `"sqrt"`, there 1-sqrt, are theirs.

    >>> rate = jl.warmup_stable_decay(1.0, warmup_steps=2, stable_steps=4, decay_steps=2)
    >>> [float(rate(t)) for t in (0, 1, 2, 6, 7, 8, 100)]
    [0.0, 0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
    >>> rate = jl.warmup_stable_decay(1.0, warmup_steps=2, stable_steps=4, decay_steps=4, shape="sqrt")
    >>> [float(rate(t)) for t in (6, 7, 10)]
    [1.0, 0.5, 0.0]
    """
    if shape == "exponential":
        for name, given in (("peak_value", peak_value), ("end_value", end_value)):
            if is_known(given) and given == 0:
                wrong = f"{name} is out of range, got {given!r}"
                allowed = "the exponential shape takes a number > 0"
                raise ValueError(message("warmup_stable_decay", wrong, allowed=allowed))
    decay_start = warmup_steps + stable_steps

    def value(count: Any) -> Array:
        t = steps_of(count)
        up = between(init_value, peak_value, ramp(t, 0, warmup_steps))
        down = _fall(peak_value, end_value, ramp(t, decay_start, decay_start + decay_steps), shape)
        return jnp.where(t < like(decay_start, t), up, down)

    return value


@checked
def power(
    peak_value: NonNegative,
    exponent: NonNegative,
    *,
    warmup_steps: Positive,
    init_value: NonNegative = 0.0,
) -> Schedule:
    r"""Linear up, then down like a power of the step.

    $$\eta(t) = \eta_0 + (p - \eta_0) t/w \quad (t < w), \qquad \eta(t) = p (w/t)^a \quad (t \ge w)$$

    It needs no length of the run. `inverse_sqrt` is the one with $a = 1/2$.

    Args:
      peak_value: $p \ge 0$, reached at step $w$.
      exponent: $a \ge 0$; 0 holds the peak.
      warmup_steps: $w > 0$.
      init_value: $\eta_0$, at step 0.

    Raises:
      ValueError: a value is out of range.

    Source: Shen et al. 2024, arXiv:2408.13359, whose rate follows the same law, with an exponent that they
    fit. Theirs counts tokens, has a factor in proportion to the batch and is capped at a largest rate; here
    steps are counted, and the law begins at the peak when the warm-up ends.

    >>> rate = jl.power(1.0, 2.0, warmup_steps=4)
    >>> [float(rate(t)) for t in (0, 2, 4, 8)]
    [0.0, 0.5, 1.0, 0.25]
    """

    def value(count: Any) -> Array:
        t = steps_of(count)
        up = between(init_value, peak_value, ramp(t, 0, warmup_steps))
        w = like(warmup_steps, t)
        law = like(peak_value, t) * jnp.power(w / jnp.maximum(t, w), like(exponent, t))
        return jnp.where(t < w, up, law)

    return value


@checked
def inverse_sqrt(
    peak_value: NonNegative, *, warmup_steps: Positive, init_value: NonNegative = 0.0
) -> Schedule:
    r"""Linear up, then down like one over the root of the step.

    $$\eta(t) = \eta_0 + (p - \eta_0) t/w \quad (t < w), \qquad \eta(t) = p \sqrt{w/t} \quad (t \ge w)$$

    Args:
      peak_value: $p \ge 0$, reached at step $w$.
      warmup_steps: $w > 0$.
      init_value: $\eta_0$, at step 0.

    Raises:
      ValueError: a value is out of range.

    Source: Vaswani et al. 2017, arXiv:1706.03762, equation 3.

    >>> rate = jl.inverse_sqrt(1.0, warmup_steps=4)
    >>> [float(rate(t)) for t in (0, 2, 4, 16, 64)]
    [0.0, 0.5, 1.0, 0.5, 0.25]
    """

    def value(count: Any) -> Array:
        t = steps_of(count)
        up = between(init_value, peak_value, ramp(t, 0, warmup_steps))
        w = like(warmup_steps, t)
        return jnp.where(t < w, up, like(peak_value, t) * jnp.sqrt(w / jnp.maximum(t, w)))

    return value


def _fall(peak: Scalar, end: Scalar, part: Array, shape: str) -> Array:
    """From the peak to the end."""
    if shape == "exponential":
        return as_scalar(peak) * jnp.exp(part * _log_ratio(end, peak))
    return between(peak, end, _WAYS[shape](part))


def _log_ratio(x: Scalar, y: Scalar) -> Scalar:
    if is_known(x) and is_known(y):
        return math.log(float(x) / float(y))
    return jnp.log(as_scalar(x) / as_scalar(y))
