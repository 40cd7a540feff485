"""SAM: the gradient where the loss is highest nearby (Foret et al. 2021)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._axes import reduction_axes
from .._errors import message
from .._global_norm import global_norm
from .._hyperparameters import Positive, checked
from .._numerics import abs_square, accumulation_dtype, divide, times
from .._states import check_state
from .._types import Params, Rule, State, Updates, make_rule
from .._wrapped import Inner

__all__ = ["sam"]


class SAMState(NamedTuple):
    """State of `sam`."""

    inner: State  # the wrapped rule's


@checked
def sam(rule: Any, rho: Positive = 0.05, *, adaptive: bool = False) -> Rule:
    r"""Sharpness-aware minimization: a step by the gradient at the worst point nearby.

    $$e_t = \rho\, g_t / \lVert g_t \rVert, \qquad \text{the rule gets } \nabla f(\theta_t + e_t)$$

    With `adaptive` (ASAM), $e_t = \rho\, \theta_t^2 g_t / \lVert \theta_t g_t \rVert$. The norm is over all
    leaves. Call `update(grads, state, params, grad_fn=...)`, with a function from parameters to the gradient
    of the same batch; it runs once in each step. This is optax's `sam` in its "opaque" mode, with normalized
    ascent for its second rule.

    Args:
      rule: any rule. Divide its state with `sam(zero(rule, ...))`: gradients are of whole parameters.
      rho: $\rho > 0$, the distance, in the parameters' units.
      adaptive: measure the distance in proportion to each parameter.

    Returns:
      The rule; its `update` needs `params` and `grad_fn`; its state is `SAMState(inner)`.

    Raises:
      TypeError: rule is not a rule, or `grad_fn` is missing.
      ValueError: rho is not positive, or the rule is inside `zero(..., axis_name=...)`.

    Source: Foret et al. 2021, arXiv:2010.01412, algorithm 1; Kwon et al. 2021, arXiv:2102.11600 (`adaptive`).

    >>> rule, params = jl.sam(jl.sgd(0.1), rho=0.5), jnp.float32(1.0)
    >>> gradient = jax.grad(lambda x: x**2)
    >>> updates, _ = rule.update(gradient(params), rule.init(params), params, grad_fn=gradient)
    >>> round(float(updates), 6)  # the gradient at 1.5
    -0.3
    """
    wrapped = Inner("sam", rule, each_step=False)

    def init(params: Params) -> SAMState:
        return SAMState(wrapped.init(params))

    def update(
        updates: Updates,
        state: SAMState,
        params: Params | None = None,
        *,
        grad_fn: Callable[[Params], Updates] | None = None,
        **extra: Any,
    ) -> tuple[Updates, SAMState]:
        check_state("sam", SAMState, state)
        if params is None or grad_fn is None:
            missing = "params" if params is None else "grad_fn"
            do = "Call update(grads, state, params, grad_fn=...)"
            raise TypeError(message("sam", f"{missing} needed, got None", do=do))
        if reduction_axes():
            wrong = "the rule is inside zero(axis_name=...), where parameters are divided"
            raise ValueError(message("sam", wrong, do="Write sam(zero(rule, axis_name=...))"))
        with wrapped.explained(updates, state.inner, params):
            worst = _ascended(updates, params, rho, adaptive)
        made, inner = wrapped.update(grad_fn(worst), state.inner, params, extra)
        return made, SAMState(inner)

    return make_rule(init, update)


def _ascended(gradients: Updates, params: Params, rho: Any, adaptive: bool) -> Params:
    """The parameters, moved by rho along the gradient."""

    def wide(g: Array, p: Array) -> tuple[Array, Array]:
        dtype = jnp.promote_types(accumulation_dtype(g.dtype), accumulation_dtype(p.dtype))
        return g.astype(dtype), p.astype(dtype)

    def along(g: Array, p: Array) -> Array:
        g, p = wide(g, p)
        return times(abs_square(p), g) if adaptive else g

    def counted(g: Array, p: Array) -> Array:
        g, p = wide(g, p)
        return times(jnp.abs(p), g) if adaptive else g

    norm = global_norm(jax.tree.map(counted, gradients, params))
    size = divide(jnp.asarray(rho, norm.dtype), norm)

    def moved(g: Array, p: Array) -> Array:
        e = along(g, p)
        return (p.astype(e.dtype) + times(size.astype(e.real.dtype), e)).astype(p.dtype)

    return jax.tree.map(moved, gradients, params)
