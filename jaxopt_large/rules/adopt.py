"""ADOPT: Adam divided by the mean square before, so that any b2 converges (Taniguchi et al. 2024)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from .._errors import message
from .._hyperparameters import Decay, Mask, Positive, Rate, StateDtype, checked
from .._numerics import abs_square, as_decay, bounded, ema, is_complex, like, over, scalar_dtype, times
from .._types import Rule
from ..leafwise import Stage, count, joined, lift, zeros
from ._registry import rule
from .adam import ScaleByAdamState
from .learning_rate import scale_by_learning_rate
from .weight_decay import decay_of

__all__ = ["adopt", "scale_by_adopt"]


def fourth_root(steps: Array) -> Array:
    """The limit that the paper gives its coordinates, of steps taken before."""
    return steps**0.25


class _Shared(NamedTuple):
    is_first: Array
    limit: Any


@checked
def scale_by_adopt(
    b1: Decay = 0.9,
    b2: Decay = 0.9999,
    eps: Positive = 1e-6,
    mu_dtype: StateDtype = None,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Callable[[Array], Any] = fourth_root,
) -> Rule:
    r"""The direction of ADOPT, see `adopt`.

    Raises:
      ValueError: b1 or b2 is outside [0, 1), eps is not positive, or the dtype not floating.
    """
    d1, d2 = as_decay(b1), as_decay(b2)
    if not callable(clip_value_fn):
        wrong = f"clip_value_fn is no function, got {clip_value_fn!r}"
        raise TypeError(message("scale_by_adopt", wrong, allowed="from steps taken to a number"))

    def shared(kept: ScaleByAdamState) -> _Shared:
        limit = clip_value_fn(kept.count.astype(scalar_dtype())) if use_clipping else None
        return _Shared(kept.count == 0, limit)

    def step(shared: _Shared, g: Array, p: Any, kept: ScaleByAdamState) -> tuple[Array, Any]:
        del p
        g = bounded(g)
        scaled = over(g, jnp.maximum(jnp.sqrt(kept.nu), like(eps, g)))
        if shared.limit is not None:
            scaled = _clipped(scaled, like(shared.limit, g))
        mu = jnp.where(shared.is_first, kept.mu, ema(kept.mu, scaled, d1))
        nu = jnp.where(shared.is_first, abs_square(g), ema(kept.nu, abs_square(g), d2))
        ahead = jnp.where(shared.is_first, mu, ema(mu, scaled, d1)) if nesterov else mu
        return ahead, kept._replace(mu=mu, nu=nu)

    state = ScaleByAdamState(count=count(), mu=zeros(mu_dtype), nu=zeros(real=True))
    return lift("scale_by_adopt", Stage(step, state, shared), chained=False)


@rule
def adopt(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.9999,
    eps: Positive = 1e-6,
    mu_dtype: StateDtype = None,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Callable[[Array], Any] = fourth_root,
    weight_decay: Rate = 0.0,
    mask: Mask = None,
) -> Rule:
    r"""ADOPT: the gradient divided first, and by what it had no part in.

    The first step keeps $\nu_0 = g_0^2$, and has no direction; then

    $$\mu_t = b_1 \mu_{t-1} + (1-b_1)\, \mathrm{clip}\!\left(\frac{g_t}{\max(\sqrt{\nu_{t-1}}, \epsilon)},
      \pm c_t\right), \qquad \nu_t = b_2 \nu_{t-1} + (1-b_2) g_t^2, \qquad
      \theta_{t+1} = \theta_t - \eta_t \mu_t$$

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      b1: $b_1$ in [0, 1), decay of the mean gradient.
      b2: $b_2$ in [0, 1), decay of the mean square.
      eps: $\epsilon > 0$, the least denominator.
      mu_dtype: floating dtype of `mu`; by default float32 (float64 for float64).
      nesterov: look ahead along the momentum.
      use_clipping: whether there is a limit $c_t$.
      clip_value_fn: from the number of steps taken before to $c_t$; by default its fourth root.
      weight_decay: $\lambda$, like the learning rate; decoupled, and multiplied by it.
      mask: which leaves decay: a glob over their paths, a tree of booleans, a prefix of one, or a function
        from the parameters to one of these; all of them by default.

    Returns:
      The rule; its state holds `count`, `mu` and `nu`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Source: Taniguchi et al. 2024, arXiv:2411.02853, algorithm 2 and its clipping in section 5.

    >>> rule = jl.adopt(0.5, b1=0.0)
    >>> _, state = rule.update(jnp.float32(2.0), rule.init(jnp.float32(0.0)))
    >>> updates, state = rule.update(jnp.float32(1.0), state)
    >>> float(updates)
    -0.25
    """
    direction = scale_by_adopt(
        b1, b2, eps, mu_dtype, nesterov=nesterov, use_clipping=use_clipping, clip_value_fn=clip_value_fn
    )
    return joined("adopt", direction, *decay_of(weight_decay, mask), scale_by_learning_rate(learning_rate))


def _clipped(x: Array, limit: Any) -> Array:
    if is_complex(x):  # its size, not its parts
        size = jnp.abs(x)
        return times(jnp.where(size > limit, limit / jnp.maximum(size, limit), 1.0), x)
    return jnp.clip(x, -limit, limit)
