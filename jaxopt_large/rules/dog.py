"""DoG and DoWG: rates from how far the parameters have come (Ivgi et al. 2023; Khaled et al. 2023)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._errors import POSITIVE, check_hyperparameters, message
from .._hyperparameters import Mask, NonNegative, Positive, Rate, checked
from .._numerics import abs_square, as_scalar, bounded, divide, scalar_dtype, times
from .._types import Rule, Updates
from ..leafwise import Stage, first_parameters, is_first_step, joined, lift, shared
from ._registry import rule
from .learning_rate import scale_by_learning_rate
from .weight_decay import decay_of

__all__ = ["dog", "dowg", "scale_by_dog", "scale_by_dowg"]

_TERMS = 2**30  # largest squares of which a sum is finite: of all elements, and steps
_KINDS = ("distance", "learning_rate", "heuristic")


class DoGState(NamedTuple):
    """State of DoG."""

    is_init_step: Bool[Array, ""]
    init_params: Updates  # the first parameters, float32
    max_dist: Float[Array, ""]  # the largest distance from them
    sum_sq_norm_grads: Float[Array, ""]  # sum of squared norms of gradients


class DoWGState(NamedTuple):
    """State of DoWG."""

    init_params: Updates  # the first parameters, float32
    estim_sq_dist: Float[Array, ""]  # the largest squared distance from them
    weighted_sq_norm_grads: Float[Array, ""]  # sum of squared norms of gradients, weighted by it


def _sums(shared: Any, g: Array, p: Array, kept: Any) -> tuple[Array, Array, Array]:
    del shared
    seen = (g, p - kept.init_params, p)
    return tuple(jnp.sum(abs_square(bounded(x, _TERMS))) for x in seen)  # type: ignore[return-value]


def _scaled(rate: Any, g: Array, p: Any, kept: Any, sums: Any) -> tuple[Array, Any]:
    del p, sums
    return times(rate, bounded(g, _TERMS)), kept


def _saturated(total: Array) -> Array:
    """A sum that has overflowed stays usable."""
    return jnp.minimum(total, jnp.finfo(total.dtype).max)


@checked
def scale_by_dog(init_step: Any = ("heuristic", 1e-6), eps: NonNegative = 1e-8) -> Rule:
    r"""Multiplies by DoG's rate, see `dog`.

    Raises:
      ValueError: the kind of the first step is unknown, or a value negative.
      TypeError: `init_step` is no pair.
    """
    kind, size = _checked_step(init_step)

    def combine(given: Any, kept: DoGState, totals: Any) -> tuple[Array, DoGState]:
        del given
        square, moved, norm = (total.astype(scalar_dtype()) for total in totals)
        first = as_scalar(size)
        begun = {"distance": first, "heuristic": first * (1.0 + jnp.sqrt(norm)), "learning_rate": 0.0}[kind]
        far = jnp.maximum(kept.max_dist, jnp.sqrt(moved))
        far = jnp.where(kept.is_init_step, jnp.maximum(far, begun), far)
        total = _saturated(kept.sum_sq_norm_grads + square)
        rate = divide(far, jnp.sqrt(total + as_scalar(eps)))
        if kind == "learning_rate":  # until something has moved, or nothing ever would
            rate = jnp.where(far == 0, as_scalar(size), rate)
        return rate, kept._replace(max_dist=far, sum_sq_norm_grads=total)

    state = DoGState(is_first_step(), first_parameters(), shared(0.0), shared(0.0))
    stage = Stage(_scaled, state, measure=_sums, combine=combine, needs_params=True)
    return lift("scale_by_dog", stage, chained=False)


@checked
def scale_by_dowg(init_estim_sq_dist: Positive | None = None, eps: Positive = 1e-4) -> Rule:
    r"""Multiplies by DoWG's rate, see `dowg`.

    Raises:
      ValueError: a value is not positive.
    """

    def combine(given: Any, kept: DoWGState, totals: Any) -> tuple[Array, DoWGState]:
        del given
        square, moved, _ = (total.astype(scalar_dtype()) for total in totals)
        far = jnp.maximum(kept.estim_sq_dist, moved)
        weighted = _saturated(kept.weighted_sq_norm_grads + far * square)
        rate = far / (jnp.sqrt(weighted) + as_scalar(eps))
        return rate, kept._replace(estim_sq_dist=far, weighted_sq_norm_grads=weighted)

    begun = eps if init_estim_sq_dist is None else init_estim_sq_dist
    state = DoWGState(first_parameters(), shared(begun), shared(0.0))
    stage = Stage(_scaled, state, measure=_sums, combine=combine, needs_params=True)
    return lift("scale_by_dowg", stage, chained=False)


@rule
def dog(
    learning_rate: Rate = 1.0,
    init_step: Any = ("heuristic", 1e-6),
    eps: NonNegative = 1e-8,
    weight_decay: Rate | None = None,
    mask: Mask = None,
) -> Rule:
    r"""DoG: the distance from the start over the root of the sum of squared gradients.

    $$\bar r_t = \max_{i \le t} \lVert\theta_i - \theta_0\rVert, \qquad
      \theta_{t+1} = \theta_t - \eta_t \frac{\max(\bar r_t, r_\epsilon)}
      {\sqrt{\sum_{i \le t} \lVert g_i \rVert^2 + \epsilon}} g_t$$

    with norms over all leaves. Its authors average the parameters: wrap it in `ema_of_params`.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule; the paper's is 1.
      init_step: how the first step is made, and a number $\alpha > 0$: "heuristic" for
        $r_\epsilon = \alpha (1 + \lVert\theta_0\rVert)$, "distance" for $r_\epsilon = \alpha$,
        "learning_rate" for a first step of $\alpha g_0$.
      eps: $\epsilon \ge 0$.
      weight_decay: a number >= 0 or a schedule; times the parameter it is added to the gradient. None for
        none.
      mask: which leaves decay, see `adamw`.

    Returns:
      The rule; its `update` needs `params`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Source: Ivgi, Hinder and Carmon 2023, arXiv:2302.12022, equation 1 and algorithm 1; names as in optax.

    >>> rule, params = jl.dog(init_step=("distance", 0.5)), jnp.float32(3.0)
    >>> updates, state = rule.update(jnp.float32(7.0), rule.init(params), params)
    >>> round(float(updates), 5)
    -0.5
    """
    decay = decay_of(0.0 if weight_decay is None else weight_decay, mask)
    return joined("dog", *decay, scale_by_dog(init_step, eps), scale_by_learning_rate(learning_rate))


@rule
def dowg(
    learning_rate: Rate = 1.0,
    init_estim_sq_dist: Positive | None = None,
    eps: Positive = 1e-4,
    weight_decay: Rate | None = None,
    mask: Mask = None,
) -> Rule:
    r"""DoWG: as DoG, with gradients that count by how far the parameters had come.

    $$\bar r_t^2 = \max(\bar r_{t-1}^2, \lVert\theta_t - \theta_0\rVert^2), \qquad
      v_t = v_{t-1} + \bar r_t^2 \lVert g_t\rVert^2, \qquad
      \theta_{t+1} = \theta_t - \eta_t \frac{\bar r_t^2}{\sqrt{v_t} + \epsilon} g_t$$

    with norms over all leaves.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule; the paper's is 1.
      init_estim_sq_dist: $\bar r_0^2 > 0$; by default $\epsilon$.
      eps: $\epsilon > 0$.
      weight_decay: a number >= 0 or a schedule; times the parameter it is added to the gradient. None for
        none.
      mask: which leaves decay, see `adamw`.

    Returns:
      The rule; its `update` needs `params`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Source: Khaled, Mishchenko and Jin 2023, arXiv:2305.16284, algorithm 1; names as in optax.
    """
    decay = decay_of(0.0 if weight_decay is None else weight_decay, mask)
    direction = scale_by_dowg(init_estim_sq_dist, eps)
    return joined("dowg", *decay, direction, scale_by_learning_rate(learning_rate))


def _checked_step(init_step: Any) -> tuple[str, Any]:
    who = "dog"
    if not isinstance(init_step, tuple | list) or len(init_step) != 2:
        allowed = "a kind and a number, as ('heuristic', 1e-6)"
        raise TypeError(message(who, f"init_step is no pair, got {init_step!r}", allowed=allowed))
    kind, size = init_step
    if kind not in _KINDS:
        allowed = f"one of {', '.join(map(repr, _KINDS))}"
        raise ValueError(message(who, f"init_step is of an unknown kind, got {kind!r}", allowed=allowed))
    check_hyperparameters(who, init_step=(size, POSITIVE))
    return kind, size
