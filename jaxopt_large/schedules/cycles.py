"""Up and down, once or for ever."""

import math
from typing import Annotated, Any

import jax.numpy as jnp
from jaxtyping import Array

from .._errors import message
from .._hyperparameters import Count, Decay, NonNegative, OneOf, Positive, checked
from .._numerics import like
from .._types import Schedule
from ._values import between, is_known, ramp, steps_of

ONE_CYCLE_SHAPES = ("cosine", "linear")
CYCLIC_SHAPES = ("triangular", "triangular2", "exp_range")


@checked
def one_cycle(
    peak_value: NonNegative,
    *,
    steps: Count,
    warmup_fraction: Decay = 0.3,
    init_divisor: Positive = 25.0,
    final_divisor: Positive = 1e4,
    shape: Annotated[str, OneOf(*ONE_CYCLE_SHAPES)] = "cosine",
) -> Schedule:
    r"""Up to a peak and down to almost nothing: a run in one cycle.

    With $T$ steps, $p$ the peak, $a = \max(0, fT - 1)$, $g(u) = u$ or $(1 - \cos \pi u)/2$:

    $$\eta(t) = \eta_0 + (p - \eta_0)\, g(t/a) \quad (t \le a), \qquad
      \eta(t) = p + (\eta_1 - p)\, g\!\left(\frac{t - a}{T - 1 - a}\right) \quad (t \ge a)$$

    where $\eta_0 = p/d_0$ and $\eta_1 = \eta_0/d_1$. The numbers are those of PyTorch's `OneCycleLR` in two
    phases. Optax's `cosine_onecycle_schedule` turns at $fT$ and ends at $T$.

    Args:
      peak_value: $p \ge 0$.
      steps: $T > 0$, of the run; the last is $T - 1$, and what it has holds from then on.
      warmup_fraction: $f$ in [0, 1), of the steps to the peak.
      init_divisor: $d_0 > 0$, the peak over the first value.
      final_divisor: $d_1 > 0$, the first value over the last one.
      shape: `"cosine"`, or `"linear"`.

    Raises:
      TypeError: a value is no number, or the steps no whole number.
      ValueError: a value is out of range, or the shape is unknown.

    Source: Smith & Topin 2018, arXiv:1708.07120.

    >>> rate = jl.one_cycle(1.0, steps=10, warmup_fraction=0.5, init_divisor=2.0, shape="linear")
    >>> [round(float(rate(t)), 5) for t in (0, 2, 4, 9)]
    [0.5, 0.75, 1.0, 5e-05]
    """
    turn = warmup_fraction * steps - 1.0
    turn = max(0.0, turn) if is_known(turn) else jnp.maximum(turn, 0.0)

    def value(count: Any) -> Array:
        t = steps_of(count)
        first = like(peak_value, t) / like(init_divisor, t)
        last = first / like(final_divisor, t)
        up = between(first, peak_value, _eased(ramp(t, 0.0, turn), shape))
        down = between(peak_value, last, _eased(ramp(t, turn, steps - 1), shape))
        return jnp.where(t < like(turn, t), up, down)

    return value


@checked
def cyclic(
    low: NonNegative,
    high: NonNegative,
    *,
    half_period: Positive,
    shape: Annotated[str, OneOf(*CYCLIC_SHAPES)] = "triangular",
    decay: Positive | None = None,
) -> Schedule:
    r"""Up and down between two values, again and again.

    With $h$ the steps up, and as many down, $k = \lfloor t/2h \rfloor$ the cycles behind:

    $$\eta(t) = l + (p - l) \left(1 - \left|\frac{t - 2hk}{h} - 1\right|\right) s$$

    where $s$ is 1 for `"triangular"`, $2^{-k}$ for `"triangular2"`, $\gamma^t$ for `"exp_range"`. The numbers
    are those of PyTorch's `CyclicLR`.

    Args:
      low: $l \ge 0$, at step 0.
      high: $p \ge l$, of the first peak but for the shrinking.
      half_period: $h > 0$.
      shape: how the peaks shrink.
      decay: $\gamma$ in (0, 1], each step's; `"exp_range"` needs it, and no other shape has it.

    Raises:
      ValueError: a value is out of range, `low` is above `high`, the shape is unknown, or `decay` is
        missing or too much.

    Source: Smith 2017, arXiv:1506.01186.

    >>> rate = jl.cyclic(1.0, 3.0, half_period=2, shape="triangular2")
    >>> [float(rate(t)) for t in range(9)]
    [1.0, 2.0, 3.0, 2.0, 1.0, 1.5, 2.0, 1.5, 1.0]
    """
    _check_cycles(low, high, shape, decay)

    def value(count: Any) -> Array:
        t = steps_of(count)
        h = like(half_period, t)
        inside = jnp.mod(t, 2 * h)
        height = 1.0 - jnp.abs(inside / h - 1.0)
        if shape == "triangular2":
            height *= jnp.exp2(-jnp.round((t - inside) / (2 * h)))
        if decay is not None:
            height *= jnp.exp(t * (math.log(decay) if is_known(decay) else jnp.log(like(decay, t))))
        return between(low, high, height)

    return value


def _eased(part: Array, shape: str) -> Array:
    return part if shape == "linear" else (1.0 - jnp.cos(math.pi * part)) / 2.0


def _check_cycles(low: Any, high: Any, shape: str, decay: Any) -> None:
    if is_known(low) and is_known(high) and low > high:
        raise ValueError(message("cyclic", f"low is above high, got {low!r} and {high!r}"))
    if (decay is None) == (shape == "exp_range"):
        wrong = f"decay is {'missing' if decay is None else 'not used'} with shape {shape!r}, got {decay!r}"
        do = "Pass decay=0.9999, for instance" if decay is None else "Leave it out, or take 'exp_range'"
        raise ValueError(message("cyclic", wrong, allowed="'exp_range' alone has it", do=do))
    if decay is not None and is_known(decay) and decay > 1:
        wrong = f"decay is out of range, got {decay!r}"
        raise ValueError(message("cyclic", wrong, allowed="decay must be a number in (0, 1]"))
