"""Sophia: momentum over a diagonal of the Hessian, clipped (Liu et al. 2023)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from .._axes import reduction_axes
from .._errors import check_rule, message
from .._hyperparameters import Count, Decay, Mask, Positive, Rate, StateDtype, checked
from .._numerics import accumulation_dtype, as_decay, bias_correction, ema, like, over, safe_increment
from .._states import check_state
from .._types import Params, Rule, Scalar, State, Updates, make_rule
from ..leafwise import Stage, joined, lift, random_key, zeros
from ._registry import rule
from .learning_rate import scale_by_learning_rate
from .weight_decay import add_decayed_weights

__all__ = ["hutchinson_diagonal", "scale_by_sophia", "sophia"]


class HutchinsonState(NamedTuple):
    """State of `hutchinson_diagonal`."""

    key: Key[Array, ""]  # of the next estimate


class SophiaState(NamedTuple):
    """State of Sophia."""

    count: Int[Array, ""]  # steps taken
    mu: Updates  # mean gradient, float32, shapes of the parameters
    nu: Updates  # mean of the Hessian's diagonal, float32, shapes of the parameters
    hessian_fn_state: State  # of who estimates it


class _Kept(NamedTuple):
    mu: Updates
    nu: Updates


class _Diagonal(NamedTuple):
    nu: Updates


@checked
def hutchinson_diagonal(seed: Any = 0) -> Rule:
    r"""Estimates the diagonal of the Hessian: $v \odot \nabla^2 f(\theta)\, v$ with random signs $v$.

    It is no rule of its own, but what `sophia` asks every few steps. Call `update(grads, state, params,
    obj_fn=...)`, with the loss as a function of the parameters.

    Args:
      seed: a whole number or a random key.

    Raises:
      TypeError: params or `obj_fn` are missing.
      ValueError: inside `zero(axis_name=...)`, where no device has the parameters of the loss.

    Source: Hutchinson 1990; Liu et al. 2023, arXiv:2305.14342, algorithm 1.

    >>> rule, params = jl.hutchinson_diagonal(), jnp.array([1.0, 2.0])
    >>> loss = lambda x: 3.0 * x[0] ** 2 + x[1] ** 2
    >>> diagonal, _ = rule.update(params, rule.init(params), params, obj_fn=loss)
    >>> diagonal.tolist()
    [6.0, 2.0]
    """

    def init(params: Params) -> HutchinsonState:
        return HutchinsonState(random_key(seed).begin("hutchinson_diagonal", params))

    def update(
        updates: Updates,
        state: HutchinsonState,
        params: Params | None = None,
        *,
        obj_fn: Any = None,
        **extra: Any,
    ) -> tuple[Updates, HutchinsonState]:
        del updates, extra
        if params is None or obj_fn is None:
            missing = "params" if params is None else "obj_fn"
            do = "Call update(grads, state, params, obj_fn=...)"
            raise TypeError(message("hutchinson_diagonal", f"{missing} needed, got None", do=do))
        if reduction_axes():
            wrong = "the rule is inside zero(axis_name=...), where parameters are divided"
            do = "Write zero(rule, mesh, axis) under jit"
            raise ValueError(message("hutchinson_diagonal", wrong, do=do))
        leaves, treedef = jax.tree.flatten(params)
        following, *keys = jax.random.split(jax.random.clone(state.key), len(leaves) + 1)
        signs = treedef.unflatten(
            [jax.random.rademacher(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
        )
        along = jax.jvp(jax.grad(obj_fn), (params,), (signs,))[1]

        def product(v: Array, h: Array) -> Array:
            dtype = accumulation_dtype(v.dtype)
            return v.astype(dtype) * h.astype(dtype)

        return jax.tree.map(product, signs, along), HutchinsonState(following)

    return make_rule(init, update)


@checked
def scale_by_sophia(
    b1: Decay = 0.965,
    b2: Decay = 0.99,
    eps: Positive = 1e-8,
    gamma: Positive = 0.01,
    clip_threshold: Positive | None = 1.0,
    update_interval: Count = 10,
    hessian_diagonal_fn: Any = None,
    mu_dtype: StateDtype = None,
) -> Rule:
    r"""The direction of Sophia, see `sophia`.

    Raises:
      ValueError: a value is out of range.
      TypeError: `hessian_diagonal_fn` is not a rule.
    """
    who = "scale_by_sophia"
    direction = _direction(who, as_decay(b1), eps, gamma, clip_threshold, mu_dtype)
    return _with_estimates(who, direction, as_decay(b2), update_interval, hessian_diagonal_fn, chained=False)


def _direction(who: str, d1: Scalar, eps: Any, gamma: Any, clip_threshold: Any, mu_dtype: Any) -> Rule:
    """Momentum over the diagonal, which stays as it is."""

    def step(correction: Array, g: Array, p: Any, kept: _Kept) -> tuple[Array, Any]:
        del p
        mu = ema(kept.mu, g, d1)
        least = jnp.maximum(like(gamma, g) * kept.nu, like(eps, g))
        update = over(over(mu, correction), least)
        if clip_threshold is not None:
            limit = like(clip_threshold, g)
            update = jnp.clip(update, -limit, limit)
        return update, kept._replace(mu=mu)

    def correction(kept: _Kept, *, count: Array) -> Array:
        del kept
        return bias_correction(d1, safe_increment(count))

    stage = Stage(step, _Kept(zeros(mu_dtype), zeros()), correction, extra=("count",), is_real=True)
    return lift(who, stage)


def _with_estimates(
    who: str, rule: Rule, d2: Scalar, interval: int, estimator: Any, *, chained: bool
) -> Rule:
    """The rule of stages of which the first is `_direction`, with new diagonals every `interval` steps."""
    asked: Any = hutchinson_diagonal() if estimator is None else estimator
    check_rule(who, asked, "hessian_diagonal_fn")
    asked = optax.with_extra_args_support(asked)

    def averaged(shared: Any, h: Array, p: Any, kept: _Diagonal) -> tuple[Array, Any]:
        del shared, p
        return h, _Diagonal(ema(kept.nu, h, d2))

    diagonal = lift(who, Stage(averaged, _Diagonal(zeros())), chained=False)

    def init(params: Params) -> Any:
        begun: Any = rule.init(params)
        first = SophiaState(jnp.zeros((), jnp.int32), begun[0].mu, begun[0].nu, asked.init(params))
        return (first, *begun[1:]) if chained else first

    def update(
        updates: Updates, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, Any]:
        first, rest = (state[0], state[1:]) if chained and isinstance(state, tuple | list) else (state, ())
        check_state(who, SophiaState, first)
        kept = (_Kept(first.mu, first.nu), *rest)
        made, after = rule.update(updates, kept, params, **{**extra, "count": first.count})
        new: Any = after

        def estimated() -> tuple[Updates, State]:
            found, own = asked.update(updates, first.hessian_fn_state, params, **extra)
            mean: Any = diagonal.update(found, _Diagonal(first.nu))[1]
            return mean.nu, own

        due = first.count % interval == 0
        nu, own = jax.lax.cond(due, estimated, lambda: (first.nu, first.hessian_fn_state))
        last = SophiaState(safe_increment(first.count), new[0].mu, nu, own)
        return made, (last, *new[1:]) if chained else last

    return make_rule(init, update)


@rule
def sophia(
    learning_rate: Rate,
    b1: Decay = 0.965,
    b2: Decay = 0.99,
    eps: Positive = 1e-8,
    weight_decay: Rate = 1e-4,
    weight_decay_mask: Mask = None,
    gamma: Positive = 0.01,
    clip_threshold: Positive | None = 1.0,
    update_interval: Count = 10,
    hessian_diagonal_fn: Any = None,
    mu_dtype: StateDtype = None,
) -> Rule:
    r"""Sophia: steps in proportion to the curvature, none longer than the rate.

    $$\mu_t = b_1 \mu_{t-1} + (1-b_1) g_t, \qquad
      \theta_{t+1} = \theta_t - \eta_t \left( \mathrm{clip}\!\left(
      \frac{\mu_t / (1-b_1^t)}{\max(\gamma \nu_{t-1}, \epsilon)}, \pm\rho \right)
      + \lambda_t \theta_t \right)$$

    and every $k$ steps, from the first, $\nu_t = b_2 \nu_{t-1} + (1-b_2) \hat h_t$ with an estimate
    $\hat h$ of the Hessian's diagonal. Call `update(grads, state, params, obj_fn=...)`, with the loss of the
    batch as a function of the parameters.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      b1: $b_1$ in [0, 1).
      b2: $b_2$ in [0, 1).
      eps: $\epsilon > 0$.
      weight_decay: $\lambda$, like the learning rate; decoupled.
      weight_decay_mask: which leaves decay, see `adamw`.
      gamma: $\gamma > 0$: how many steps are clipped.
      clip_threshold: $\rho > 0$; None for no clipping.
      update_interval: $k \ge 1$.
      hessian_diagonal_fn: a rule whose "updates" are the estimate; `hutchinson_diagonal()` by default.
      mu_dtype: floating dtype of `mu`; by default float32 (float64 for float64).

    Returns:
      The rule; its `update` needs `params`, and what the estimator takes. Real parameters only.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Differs: the mean is corrected, and a step uses the $\nu$ before it, as in optax and not in the paper.

    Source: Liu et al. 2023, arXiv:2305.14342, algorithm 3; names as in optax.
    """
    direction = _direction("sophia", as_decay(b1), eps, gamma, clip_threshold, mu_dtype)
    decay = add_decayed_weights(weight_decay, weight_decay_mask)
    rule = joined("sophia", direction, decay, scale_by_learning_rate(learning_rate))
    return _with_estimates("sophia", rule, as_decay(b2), update_interval, hessian_diagonal_fn, chained=True)
