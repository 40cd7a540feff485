"""Mechanic: the scale of any rule's updates, learned (Cutkosky et al. 2023)."""

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._axes import sum_over_shards
from .._errors import message
from .._global_norm import global_norm
from .._hyperparameters import Count, NonNegative, Positive, checked
from .._numerics import accumulation_dtype, as_scalar, bounded, safe_increment, scalar_dtype, times
from .._order import Wrapper, is_inside
from .._states import check_state
from .._types import Params, Rule, State, Updates, make_rule
from .._wrapped import Inner
from ..leafwise import first_parameters, zeros

__all__ = ["mechanic"]

_TERMS = 2**20  # largest products of which a sum is finite
_MOST = 1e18  # of a bet, whose square is finite

Bettors = tuple[Float[Array, ""], ...]  # a number for each decay


class MechanicState(NamedTuple):
    """State of `mechanic`."""

    base_optimizer_state: State  # the wrapped rule's
    count: Int[Array, ""]  # steps taken
    r: Bettors  # won so far
    m: Bettors  # the largest bet
    v: Bettors  # sum of squared bets
    s: Bettors  # the scales, whose sum is the scale
    x0: Updates  # the first parameters, float32
    delta: Updates  # float32 sums of the rule's updates of parameters that round; None for others


@checked
def mechanic(
    rule: Any,
    weight_decay: NonNegative = 0.01,
    eps: Positive = 1e-8,
    s_init: Positive = 1e-6,
    num_betas: Count = 6,
) -> Rule:
    r"""Learns the scale of a rule's steps from the first parameters.

    With $\Delta_t$ the sum of the rule's updates so far, $\theta_t = \theta_0 + S_t \Delta_t$ with
    $S_t = \sum_i s_{t,i}$, and for each decay $\beta_i = 1 - 10^{-i}$:

    $$h_t = \left\langle g_t + \tfrac{\lambda S_t \lVert g_t\rVert}{\lVert\theta_t\rVert + \epsilon} \theta_t,
      -\Delta_t \right\rangle, \qquad m_i = \max(\beta_i m_i, |h_t| + \epsilon), \qquad
      v_i = \beta_i^2 v_i + h_t^2$$
    $$r_i = \beta_i r_i + \mathrm{clip}(h_t, \pm m_i) s_i, \qquad
      s_i = \frac{\tfrac{s_0}{n} m_i + \max(0, r_i)}{\sqrt{v_i} + \epsilon}$$

    with $m_i$ of the step before in the bound. All sums are over all leaves. The rule's learning rate may be
    1, or a schedule whose largest value is. $\Delta_t$ is read off float32 parameters; bfloat16 and float16
    would round it away, and what `stored` keeps of parameters, so that the state has it beside them.

    Args:
      rule: any rule. `zero(mechanic(rule), ...)` divides the first parameters too.
      weight_decay: $\lambda \ge 0$.
      eps: $\epsilon > 0$.
      s_init: $s_0 > 0$, the first scale.
      num_betas: $n \ge 1$, how many decays.

    Returns:
      The rule; its `update` needs `params`; its state is a `MechanicState`.

    Raises:
      TypeError: rule is not a rule.
      ValueError: a value is out of range.

    Source: Cutkosky, Defazio and Mehta 2023, arXiv:2306.00144, algorithm 1; names as in optax's `mechanize`.

    >>> rule, params = jl.mechanic(jl.sgd(1.0), s_init=0.5), jnp.float32(0.0)
    >>> state = rule.init(params)
    >>> for _ in range(3):
    ...     updates, state = rule.update(2 * (params - 5.0), state, params)
    ...     params = params + updates
    >>> bool(params > 0)
    True
    """
    wrapped = Inner("mechanic", rule)
    betas = [1.0 - 0.1**i for i in range(1, num_betas + 1)]

    def init(params: Params) -> MechanicState:
        def each(value: Any) -> Bettors:
            return tuple(jnp.full((), value, scalar_dtype()) for _ in betas)

        count = jnp.zeros((), jnp.int32)
        x0 = first_parameters().begin("mechanic", params)
        all_round = is_inside(Wrapper.STORED_PARAMETERS)
        delta = jax.tree.map(lambda p: zeros().initial(p) if all_round or _rounds(p) else None, params)
        return MechanicState(
            wrapped.init(params), count, each(0.0), each(0.0), each(0.0), each(s_init), x0, delta
        )

    def bets(state: MechanicState, h: Array) -> dict[str, Bettors]:
        new: dict[str, list[Array]] = {"r": [], "m": [], "v": [], "s": []}
        for beta, r, m, v, s in zip(betas, state.r, state.m, state.v, state.s, strict=True):
            won = beta * r + jnp.clip(h, -m, m) * s
            most = jnp.maximum(beta * m, jnp.abs(h) + eps)
            squares = beta**2 * v + jnp.square(h)
            wealth = s_init / num_betas * most + jnp.maximum(won, 0.0)
            for name, x in zip(new, (won, most, squares, wealth / (jnp.sqrt(squares) + eps)), strict=True):
                new[name].append(x)
        return {name: tuple(xs) for name, xs in new.items()}

    def update(
        updates: Updates, state: MechanicState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, MechanicState]:
        check_state("mechanic", MechanicState, state)
        if params is None:
            do = "Call update(grads, state, params)"
            raise ValueError(message("mechanic", "params are needed, got None", do=do))
        made, inner = wrapped.update(updates, state.base_optimizer_state, params, extra)
        scale = _total(state.s)
        p, g, u = (jax.tree.map(_wide, tree) for tree in (params, updates, made))
        g = jax.tree.map(lambda x: bounded(x, _TERMS), g)

        def moved_so_far(x: Array, x0: Array, kept: Array | None) -> Array:
            return times((1.0 / (scale + eps)).astype(x.real.dtype), x - x0) if kept is None else kept

        delta = jax.tree.map(moved_so_far, p, state.x0, state.delta)
        norms = [global_norm(tree).astype(scalar_dtype()) for tree in (g, p)]
        decay = weight_decay * scale * norms[0] / (norms[1] + eps)
        h = -(_sums(g, delta) + decay * _sums(p, delta))
        good = jnp.isfinite(h)  # a step that a guard inside leaves out is no bet
        new = {
            name: tuple(jnp.where(good, x, old) for x, old in zip(xs, getattr(state, name), strict=True))
            for name, xs in bets(state, jnp.clip(h, -_MOST, _MOST)).items()
        }
        total = _total(new["s"])

        def moved(x: Array, x0: Array, d: Array, u: Array) -> Array:
            return x0 + times(total.astype(x.real.dtype), d + u) - x

        changes = jax.tree.map(moved, p, state.x0, delta, u)
        changes = jax.tree.map(lambda c, g: c.astype(g.dtype), changes, updates)
        sums = jax.tree.map(lambda d, u, kept: None if kept is None else d + u, delta, u, state.delta)
        return changes, MechanicState(inner, safe_increment(state.count), x0=state.x0, delta=sums, **new)

    return make_rule(init, update)


def _rounds(x: Array) -> bool:
    """Are small changes rounded away?"""
    return jnp.finfo(x.dtype).bits < jnp.finfo(jnp.float32).bits


def _total(numbers: Bettors) -> Float[Array, ""]:
    return functools.reduce(operator.add, numbers)


def _wide(x: Array) -> Array:
    return x.astype(accumulation_dtype(x.dtype))


def _sums(one: Any, other: Any) -> Float[Array, ""]:
    """The inner product of two trees."""
    products = jax.tree.map(lambda a, b: jnp.sum((a.conj() * b).real).astype(scalar_dtype()), one, other)
    leaves = jax.tree.leaves(products)
    return sum_over_shards(sum(leaves, as_scalar(0.0)))
