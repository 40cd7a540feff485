"""Adam-mini: one second moment for each output neuron (Zhang et al. 2024)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from .._hyperparameters import Decay, LeafAxes, Mask, NonNegative, Rate, StateDtype, checked
from .._numerics import (
    abs_square,
    as_decay,
    bias_corrections,
    bounded,
    divide,
    ema,
    over,
    plus,
)
from .._paths import first_match
from .._types import Rule, Updates
from ..leafwise import Stage, along, count, joined, lift, shape_of, shaped, size_of, sum_along, zeros
from ._factored import inside
from ._registry import rule
from .learning_rate import scale_by_learning_rate
from .weight_decay import add_decayed_weights

__all__ = ["adam_mini", "scale_by_adam_mini"]

# one for each token: leaves [tokens, width] of these names, not those that lead back to tokens
_NAMES = (
    "embed",
    "embedding",
    "embeddings",
    "embed_tokens",
    "tok_embeddings",
    "token_embedding",
    "wte",
    "wpe",
)
EMBEDDINGS = "|".join(f"{name}|{name}/*|*/{name}|*/{name}/*" for name in _NAMES)


class ScaleByAdamMiniState(NamedTuple):
    """State of Adam-mini."""

    count: Int[Array, ""]  # steps taken
    mu: Updates  # mean gradient, float32, shapes of the parameters
    nu: Updates  # mean squared gradient of each block, float32, shapes without the averaged axes


@checked
def scale_by_adam_mini(
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    mu_dtype: StateDtype = None,
    *,
    axes: LeafAxes = None,
) -> Rule:
    r"""The direction of Adam-mini, see `adam_mini`.

    Raises:
      ValueError: a value is out of range, or an axis outside a leaf.
    """
    d1, d2 = as_decay(b1), as_decay(b2)
    given = {glob: tuple(each) for glob, each in (axes or {}).items()}
    given.setdefault(EMBEDDINGS, (-1,))

    def told(path: str) -> Any:
        glob = first_match(list(given), path)
        return None if glob is None else given[glob]

    def averaged(shape: tuple[int, ...], told: Any) -> tuple[int, ...]:
        if len(shape) < 2:
            return tuple(range(len(shape)))
        return inside("adam_mini", (-2,) if told is None else told, shape)

    def block_shape(shape: tuple[int, ...], path: str) -> tuple[int, ...]:
        return tuple(n for d, n in enumerate(shape) if d not in averaged(shape, told(path)))

    def corrections(kept: ScaleByAdamMiniState) -> tuple[Array, ...]:
        return bias_corrections(kept.count, d1, d2)

    def measure(shared: Any, g: Array, p: Any, kept: ScaleByAdamMiniState, place: Any = None) -> Array:
        del shared, p, kept
        square = abs_square(bounded(g, size_of(g)))
        return sum_along(square, averaged(shape_of(g), place))

    def step(
        shared: tuple[Array, ...],
        g: Array,
        p: Any,
        kept: ScaleByAdamMiniState,
        sums: Array,
        place: Any = None,
    ) -> tuple[Array, Any]:
        del p
        mu = ema(kept.mu, bounded(g, size_of(g)), d1)
        nu = ema(kept.nu, sums * (sums.size / max(size_of(g), 1)), d2)
        root = along(plus(jnp.sqrt(nu / shared[1]), eps), averaged(shape_of(g), place), g)
        return divide(over(mu, shared[0]), root, eps), kept._replace(mu=mu, nu=nu)

    state = ScaleByAdamMiniState(count(), zeros(mu_dtype), shaped(block_shape, real=True, by_path=True))
    stage = Stage(step, state, corrections, measure, needs="axes", by_path=told)
    return lift("scale_by_adam_mini", stage, chained=False)


@rule
def adam_mini(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    mu_dtype: StateDtype = None,
    weight_decay: Rate = 1e-4,
    mask: Mask = None,
    *,
    axes: LeafAxes = None,
) -> Rule:
    r"""Adam-mini: AdamW with half the state.

    $$\nu_t = b_2 \nu_{t-1} + (1-b_2) \,\mathrm{mean}_{\text{block}}(g_t^2), \qquad
      \theta_{t+1} = \theta_t - \eta_t \left( \hat\mu_t / (\sqrt{\hat\nu_t} + \epsilon) + \lambda_t \theta_t
      \right)$$

    with $\hat\mu$ and the correction of $\nu$ as in `adam`. A block is what one output neuron weighs: of a
    leaf [..., inputs, outputs] all inputs; of embeddings [tokens, width] a token; of a vector all of it.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      b1: $b_1$ in [0, 1), decay of the mean gradient.
      b2: $b_2$ in [0, 1), decay of the mean square.
      eps: $\epsilon \ge 0$, outside the root; a coordinate whose denominator is 0 moves by 0.
      mu_dtype: floating dtype of `mu`; by default float32 (float64 for float64).
      weight_decay: $\lambda$, like the learning rate; decoupled, and multiplied by it.
      mask: which leaves decay: a glob over their paths, a tree of booleans, a prefix of one, or a function
        from the parameters to one of these; all of them by default.
      axes: glob -> the axes over which squares are averaged in the leaves there; the first match wins.

    Returns:
      The rule; its `update` needs `params`; its state holds `count`, `mu` and `nu`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Differs: the paper's blocks of queries and keys are whole heads.

    Source: Zhang et al. 2024, arXiv:2406.16793, algorithm 1.

    >>> params = {"embed": jnp.zeros((50, 8)), "up": jnp.zeros((8, 32)), "b": jnp.zeros(8)}
    >>> state = jl.adam_mini(1e-3).init(params)
    >>> {name: x.shape for name, x in state[0].nu.items()}
    {'b': (), 'embed': (50,), 'up': (32,)}
    """
    direction = scale_by_adam_mini(b1, b2, eps, mu_dtype, axes=axes)
    decay = add_decayed_weights(weight_decay, mask)
    return joined("adam_mini", direction, decay, scale_by_learning_rate(learning_rate))
