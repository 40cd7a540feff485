"""CAME: Adafactor with momentum that is trusted by how steady it is (Luo et al. 2023)."""

from typing import Any, NamedTuple

from jaxtyping import Array

from .._hyperparameters import Decay, LeafAxes, Mask, Positive, Rate, StateDtype, checked
from .._numerics import abs_square, as_decay, ema, plus, times
from .._types import Rule, Updates
from ..leafwise import Stage, joined, lift, zeros
from ._factored import Factoring, by_path, factored_rms
from ._registry import rule
from .adafactor import scale_by_block_rms
from .learning_rate import scale_by_learning_rate
from .weight_decay import decay_of

__all__ = ["came", "scale_by_came"]


class ScaleByCameState(NamedTuple):
    """State of CAME's momentum."""

    mu: Updates  # mean direction, float32, shapes of the parameters
    s_row: Updates  # means of its squared error along the longer axis, float32; (1,) where a leaf is whole
    s_col: Updates  # means along the other, float32; (1,) where a leaf is whole


@checked
def scale_by_came(
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    b3: Decay = 0.9999,
    eps: Positive = 1e-30,
    eps_error: Positive = 1e-16,
    clipping_threshold: Positive | None = 1.0,
    mu_dtype: StateDtype = None,
    *,
    axes: LeafAxes = None,
) -> Rule:
    r"""The direction of CAME, see `came`.

    Raises:
      ValueError: a value is out of range, or an axis outside a leaf.
    """
    ways, d1, d3 = Factoring("came", axes), as_decay(b1), as_decay(b3)

    def error(u: Array, mu: Array) -> Array:
        return abs_square(u - mu)

    def measure(
        shared: Any, u: Array, p: Any, kept: ScaleByCameState, place: Any = None
    ) -> tuple[Array, ...]:
        del shared, p
        return ways.means(error(u, ema(kept.mu, u, d1)), place)

    def step(
        shared: Any, u: Array, p: Any, kept: ScaleByCameState, means: tuple[Array, ...], place: Any = None
    ) -> tuple[Array, Any]:
        del shared, p
        mu = ema(kept.mu, u, d1)
        if not means:
            return mu, kept._replace(mu=mu)
        row, col = (ema(old, plus(new, eps_error), d3) for old, new in zip(kept[1:], means, strict=True))
        return times(ways.rooted(row, col, u, place), mu), ScaleByCameState(mu, row, col)

    state = ScaleByCameState(zeros(mu_dtype), by_path(ways.row_shape), by_path(ways.col_shape))
    stage = Stage(step, state, measure=measure, needs="axes", by_path=ways.told)
    clip = [] if clipping_threshold is None else [scale_by_block_rms(clipping_threshold, False)]
    squares = lift("scale_by_came", factored_rms(ways, eps, as_decay(b2)))
    return joined("scale_by_came", squares, *clip, lift("scale_by_came", stage))


@rule
def came(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    b3: Decay = 0.9999,
    eps: Positive = 1e-30,
    eps_error: Positive = 1e-16,
    clipping_threshold: Positive | None = 1.0,
    mu_dtype: StateDtype = None,
    weight_decay: Rate = 0.0,
    mask: Mask = None,
    *,
    axes: LeafAxes = None,
) -> Rule:
    r"""CAME: momentum divided by the root of its own factored error.

    With $u_t$ as in `adafactor`, of means that decay by $b_2$, clipped at the root mean square $d$:

    $$m_t = b_1 m_{t-1} + (1-b_1) u_t, \qquad
      R_t = b_3 R_{t-1} + (1-b_3) \mathrm{mean}_j((u_t - m_t)^2 + \epsilon'), \qquad C_t \text{ likewise}$$
    $$\theta_{t+1} = \theta_t - \eta_t \left( \frac{m_t}{\sqrt{R_t C_t / \mathrm{mean}_i(R_t)}}
      + \lambda_t \theta_t \right)$$

    Leaves of one axis move by $m_t$. Of leaves with more than two axes the last two are factored.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      b1: $b_1$ in [0, 1), decay of the momentum.
      b2: $b_2$ in [0, 1), decay of the mean square.
      b3: $b_3$ in [0, 1), decay of the mean error.
      eps: $\epsilon > 0$, beside squared gradients.
      eps_error: $\epsilon' > 0$, beside squared errors.
      clipping_threshold: $d > 0$; None for none.
      mu_dtype: floating dtype of `mu`; by default float32 (float64 for float64).
      weight_decay: $\lambda$, like the learning rate; decoupled, and multiplied by it.
      mask: which leaves decay: a glob over their paths, a tree of booleans, a prefix of one, or a function
        from the parameters to one of these; all of them by default.
      axes: glob -> the two axes that are factored in the leaves there, or () for none; the first match wins.

    Returns:
      The rule; its state holds `v_row`, `v_col`, `v`, `mu`, `s_row` and `s_col`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Source: Luo et al. 2023, arXiv:2307.02047, algorithm 2.
    """
    direction = scale_by_came(b1, b2, b3, eps, eps_error, clipping_threshold, mu_dtype, axes=axes)
    return joined("came", direction, *decay_of(weight_decay, mask), scale_by_learning_rate(learning_rate))
