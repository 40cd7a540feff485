"""Clipping by what norms have been: an average of them, of all leaves or of each."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._hyperparameters import Decay, Positive, checked
from .._numerics import as_decay, as_scalar, ema, like, times
from .._types import Rule, Updates
from ..leafwise import Stage, count, lift, shaped, shared
from .clipping import square

_ANY = 0.0  # the mean as long as there is none: of zeros, and of what is not finite, none is made


class ClipByEmaNormState(NamedTuple):
    """State of `clip_by_ema_norm`."""

    count: Int[Array, ""]  # steps taken
    norm: Float[Array, ""] | Updates  # mean norm, of all leaves or of each, float32


@checked
def clip_by_ema_norm(ratio: Positive = 1.5, decay: Decay = 0.99, *, per_leaf: bool = False) -> Rule:
    r"""Scales a gradient down to a multiple of what its norm has been.

    $$u_t = g_t \min\!\left(1, \frac{r\, m_{t-1}}{\lVert g_t \rVert}\right), \qquad
      m_t = \beta m_{t-1} + (1-\beta) \lVert u_t \rVert, \qquad m_1 = \lVert g_1 \rVert$$

    The average is of norms after clipping, so that a spike raises it by $(1 - \beta)(r - 1)$ of itself at
    most. A norm that is not finite leaves it as it is and makes updates NaN: `skip_nonfinite` drops such a
    step.

    Args:
      ratio: $r > 0$, above 1 where typical gradients should pass.
      decay: $\beta$ in [0, 1).
      per_leaf: each leaf by its own norm; by default the norm over all leaves.

    Returns:
      The rule; its state is `ClipByEmaNormState(count, norm)`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Source: Wang et al. 2025, arXiv:2502.11034 (per leaf); Kumar, Owen, Chowdhury and Güra 2025,
    arXiv:2504.02507, for all leaves together.

    >>> rule = jl.clip_by_ema_norm(2.0)
    >>> _, state = rule.update(jnp.array([3.0, 4.0]), rule.init(jnp.zeros(2)))
    >>> updates, state = rule.update(jnp.array([30.0, 40.0]), state)
    >>> [round(x, 4) for x in updates.tolist()]
    [6.0, 8.0]
    """
    d = as_decay(decay)

    def bound(is_first: Array, norm: Array, mean: Array) -> tuple[Array, Array]:
        """The factor of a gradient, and the next mean."""
        most = jnp.where(is_first, norm, like(ratio, norm) * mean)
        factor = jnp.where(norm > most, most / norm, jnp.ones((), norm.dtype))
        following = jnp.where(is_first, norm, ema(mean, jnp.minimum(norm, most), d))
        good = jnp.isfinite(norm)
        return jnp.where(good, factor, jnp.nan), jnp.where(good, following, mean)

    if per_leaf:

        def step(shared: Any, g: Array, p: Any, kept: Any, total: Array) -> tuple[Array, Any]:
            del shared, p
            factor, mean = bound(kept.norm == _ANY, jnp.sqrt(total), kept.norm)
            return times(factor, g), kept._replace(norm=mean)

        state = ClipByEmaNormState(count(), shaped(lambda shape: (), real=True))
        stage = Stage(step, state, lambda kept: kept.count, square, needs="axes")
        return lift("clip_by_ema_norm", stage, chained=False)

    def combine(is_first: Array, kept: Any, total: Array) -> tuple[Array, Any]:
        norm = as_scalar(jnp.sqrt(total))
        factor, mean = bound(is_first, norm, as_scalar(kept.norm))
        return factor, kept._replace(norm=mean.astype(kept.norm.dtype))

    def scaled(factor: Array, g: Array, p: Any, kept: Any, total: Array) -> tuple[Array, Any]:
        del p, total
        return times(factor, g), kept

    state = ClipByEmaNormState(count(), shared(_ANY))
    stage = Stage(scaled, state, lambda kept: kept.norm == _ANY, square, combine, needs="axes")
    return lift("clip_by_ema_norm", stage, chained=False)
