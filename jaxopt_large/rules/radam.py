"""RAdam: Adam without its root until the mean square can be trusted (Liu et al. 2020)."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from .._hyperparameters import Decay, Mask, NonNegative, Rate, checked
from .._knob import Knob
from .._numerics import (
    abs_square,
    as_decay,
    as_scalar,
    bias_correction,
    bounded,
    complement,
    divide,
    ema,
    plus,
    safe_increment,
    scalar_dtype,
    times,
)
from .._types import Rule
from ..leafwise import Stage, count, joined, lift, zeros
from ._momentum import unbiased
from ._registry import rule
from .adam import ScaleByAdamState
from .learning_rate import scale_by_learning_rate
from .weight_decay import decay_of

__all__ = ["radam", "scale_by_radam"]


_EARLY = 0.1  # of the time that the mean square reaches back: below, four terms of a series have 16 digits


class _Shared(NamedTuple):
    """Corrections of the means, and how the root of the mean square is trusted."""

    mu: Array
    nu: Array
    next_mu: Any  # of the step after, with Nesterov momentum
    rectifier: Array
    is_trusted: Array


@checked
def scale_by_radam(
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    threshold: NonNegative = 5.0,
    *,
    nesterov: bool = False,
) -> Rule:
    r"""The direction of RAdam, see `radam`.

    Raises:
      ValueError: b1 or b2 is outside [0, 1), or another value negative.
    """
    d1, d2 = as_decay(b1), as_decay(b2)

    def shared(kept: ScaleByAdamState) -> _Shared:
        n = safe_increment(kept.count)
        correction = bias_correction(d2, n)
        longest, length = _lengths(d2, n, correction)
        is_trusted = length >= as_scalar(threshold)
        safe = jnp.where(length > 4.0, length, longest)  # a threshold below 4 has no root there
        square = (safe - 4.0) * (safe - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * safe)
        next_mu = bias_correction(d1, safe_increment(n)) if nesterov else None
        return _Shared(bias_correction(d1, n), correction, next_mu, jnp.sqrt(square), is_trusted)

    def step(shared: _Shared, g: Array, p: Any, kept: ScaleByAdamState) -> tuple[Array, Any]:
        del p
        g = bounded(g)
        mu, nu = ema(kept.mu, g, d1), ema(kept.nu, abs_square(g), d2)
        mu_hat = unbiased(mu, g, d1, shared.mu, shared.next_mu)
        root = jnp.sqrt(plus(nu / shared.nu, eps_root))
        rectified = times(shared.rectifier, divide(mu_hat, plus(root, eps), eps))
        return jnp.where(shared.is_trusted, rectified, mu_hat), kept._replace(mu=mu, nu=nu)

    state = ScaleByAdamState(count=count(), mu=zeros(), nu=zeros(real=True))
    return lift("scale_by_radam", Stage(step, state, shared), chained=False)


@rule
def radam(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    threshold: NonNegative = 5.0,
    *,
    nesterov: bool = False,
    weight_decay: Rate = 0.0,
    mask: Mask = None,
) -> Rule:
    r"""RAdam: the variance of Adam's early steps rectified.

    $$\rho_\infty = 2/(1-b_2) - 1, \qquad \rho_t = \rho_\infty - 2 t b_2^t / (1-b_2^t)$$
    $$r_t = \sqrt{\frac{(\rho_t-4)(\rho_t-2)\rho_\infty}{(\rho_\infty-4)(\rho_\infty-2)\rho_t}}, \qquad
      u_t = r_t \hat\mu_t / (\sqrt{\hat\nu_t + \bar\epsilon} + \epsilon)
      \;\text{ if } \rho_t \ge \tau, \text{ else } \hat\mu_t$$

    with the means as in `adam`.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      b1: $b_1$ in [0, 1), decay of the mean gradient.
      b2: $b_2$ in [0, 1), decay of the mean square.
      eps: $\epsilon \ge 0$, outside the root; a coordinate whose denominator is 0 moves by 0.
      eps_root: $\bar\epsilon \ge 0$, inside the root.
      threshold: $\tau$, how many steps' worth of squares are enough; below 4 there is no $r_t$.
      nesterov: Nesterov momentum.
      weight_decay: $\lambda$, like the learning rate; decoupled, and multiplied by it.
      mask: which leaves decay: a glob over their paths, a tree of booleans, a prefix of one, or a function
        from the parameters to one of these; all of them by default.

    Returns:
      The rule; its state holds `count`, `mu` and `nu`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Differs: PyTorch begins above 5, not at 5, and divides $\epsilon$ by $\sqrt{1-b_2^t}$.

    Source: Liu et al. 2020, arXiv:1908.03265, algorithm 2.

    >>> rule = jl.radam(0.5, eps=0.0)
    >>> updates, state = rule.update(jnp.float32(1e-3), rule.init(jnp.float32(0.0)))
    >>> round(float(updates), 6)  # the first steps are those of momentum
    -0.0005
    """
    direction = scale_by_radam(b1, b2, eps, eps_root, threshold, nesterov=nesterov)
    return joined("radam", direction, *decay_of(weight_decay, mask), scale_by_learning_rate(learning_rate))


def _lengths(decay: Any, n: Array, correction: Array) -> tuple[Any, Array]:
    r"""$\rho_\infty$ and $\rho_t$; early, where they are nearly equal in size, from a series.

    With $a = -\log b$, $x = t a$: $\rho_t = \rho_\infty - 2/a + t - 2t (x/12 - x^3/720 + x^5/30240 - \dots)$.
    """
    steps = n.astype(scalar_dtype())
    log: Any = decay.log if isinstance(decay, Knob) else None
    is_exact = isinstance(decay, float) or log is not None
    longest = 2.0 / complement(decay if is_exact else as_scalar(decay)) - 1.0
    length = longest - 2.0 * steps * (1.0 - correction) / correction
    if not is_exact or (isinstance(decay, float) and decay == 0):
        return longest, length
    rate = -math.log(decay) if log is None else -log
    x = steps * rate
    square = jnp.square(x)
    rest = x * (1 / 12 - square * (1 / 720 - square * (1 / 30240 - square / 1209600)))
    early = (longest - 2.0 / rate) + steps - 2.0 * steps * rest
    return longest, jnp.where(x < _EARLY, early, length)
