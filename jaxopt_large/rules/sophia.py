"""Sophia: momentum over a diagonal of the Hessian, clipped (Liu et al. 2023)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from .._axes import reduction_axes
from .._errors import check_rule, message
from .._hyperparameters import Count, Decay, Mask, Positive, Rate, StateDtype, checked
from .._numerics import accumulation_dtype, as_decay, bias_correction, ema, like, over
from .._states import check_state
from .._types import Params, Rule, State, Updates, make_rule
from ..leafwise import Stage, lift, random_key, zeros
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
    d1, d2 = as_decay(b1), as_decay(b2)
    estimator: Any = hutchinson_diagonal() if hessian_diagonal_fn is None else hessian_diagonal_fn
    check_rule(who, estimator, "hessian_diagonal_fn")
    estimator = optax.with_extra_args_support(estimator)

    def step(correction: Array, g: Array, p: Any, kept: _Kept) -> tuple[Array, Any]:
        del p
        mu = ema(kept.mu, g, d1)
        least = jnp.maximum(like(gamma, g) * kept.nu, like(eps, g))
        update = over(over(mu, correction), least)
        if clip_threshold is not None:
            limit = like(clip_threshold, g)
            update = jnp.clip(update, -limit, limit)
        return update, kept._replace(mu=mu)

    def averaged(shared: Any, h: Array, p: Any, kept: _Diagonal) -> tuple[Array, Any]:
        del shared, p
        return h, _Diagonal(ema(kept.nu, h, d2))

    correction = lambda kept, *, count: bias_correction(d1, count + 1)  # noqa: E731
    direction = lift(
        who, Stage(step, _Kept(zeros(mu_dtype), zeros()), correction, extra=("count",)), chained=False
    )
    diagonal = lift(who, Stage(averaged, _Diagonal(zeros())), chained=False)

    def init(params: Params) -> SophiaState:
        kept: Any = direction.init(params)
        return SophiaState(jnp.zeros((), jnp.int32), kept.mu, kept.nu, estimator.init(params))

    def update(
        updates: Updates, state: SophiaState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, SophiaState]:
        check_state(who, SophiaState, state)
        made, new = direction.update(updates, _Kept(state.mu, state.nu), params, count=state.count)
        kept: Any = new

        def estimated() -> tuple[Updates, State]:
            found, own = estimator.update(updates, state.hessian_fn_state, params, **extra)
            averaged: Any = diagonal.update(found, _Diagonal(kept.nu))[1]
            return averaged.nu, own

        due = state.count % update_interval == 0
        nu, own = jax.lax.cond(due, estimated, lambda: (kept.nu, state.hessian_fn_state))
        largest = jnp.iinfo(state.count.dtype).max
        taken = jnp.where(state.count < largest, state.count + 1, state.count)
        return made, SophiaState(taken, kept.mu, nu, own)

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
    direction = scale_by_sophia(
        b1, b2, eps, gamma, clip_threshold, update_interval, hessian_diagonal_fn, mu_dtype
    )
    decay = add_decayed_weights(weight_decay, weight_decay_mask)
    return optax.chain(direction, decay, scale_by_learning_rate(learning_rate))
