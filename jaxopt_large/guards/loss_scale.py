"""Losses in float16: scaled up before the backward pass, gradients scaled back, the scale found by trying."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from .._errors import Problems, check_rule, message
from .._finite import all_finite
from .._gradients import present
from .._hyperparameters import Count, Positive, checked
from .._left_out import deciding, only_if
from .._nodes import is_past
from .._numerics import accumulation_dtype, safe_increment
from .._order import Wrapper, check_order
from .._states import check_state, explained
from .._types import Params, Rule, State, Updates, make_rule


class DynamicLossScaleState(NamedTuple):
    """State of `dynamic_loss_scale`."""

    scale: Float[Array, ""]  # that the next loss is to be multiplied with
    good: Int[Array, ""]  # steps since it changed
    skipped: Int[Array, ""]  # steps left out so far
    inner: State  # the wrapped rule's


@checked
def dynamic_loss_scale(
    rule: Any,
    initial: Positive = 2.0**15,
    *,
    interval: Count = 2000,
    factor: Positive = 2.0,
    least: Positive = 1.0,
    most: Positive = 2.0**24,
    axis_name: Any = None,
) -> Rule:
    r"""Takes gradients of a loss that was multiplied with a scale, and finds the scale.

    Small gradients vanish in float16. Multiply the loss with `loss_scale(state)` before the backward pass;
    this divides the gradients by it, in float32, which is what the rule gets. Where one is not finite the
    step is left out, to the bit, and the scale is divided by `factor`; after `interval` good steps it is
    multiplied.

        def scaled(params, batch):
            return loss_fn(params, batch) * jl.loss_scale(state)

    It stands around everything that looks at gradients: clipping and other guards belong inside.

    Args:
      rule: the rule to guard: everything that keeps state belongs inside.
      initial: the scale to begin with.
      interval: good steps before it grows.
      factor: above 1; a power of 2 rounds nothing.
      least: the scale shrinks no further.
      most: it grows no further.
      axis_name: inside `shard_map` or `pmap`, the axis or axes over which gradients differ between devices.

    Returns:
      The rule; its state is `DynamicLossScaleState(scale, good, skipped, inner)`. Updates are float32 for
      gradients in float16 or bfloat16.

    Raises:
      TypeError: rule is not a rule.
      ValueError: a value is out of range.

    Source: Micikevicius et al. 2018, arXiv:1710.03740, section 3.2.

    >>> rule, params = jl.dynamic_loss_scale(jl.sgd(1.0), 8.0), jnp.float16(1.0)
    >>> state = rule.init(params)
    >>> updates, state = rule.update(jnp.float16(4.0), state, params)  # of a loss times 8
    >>> _, state = rule.update(jnp.float16("inf"), state, params)
    >>> float(updates), float(jl.loss_scale(state))
    (-0.5, 4.0)
    """
    check_rule("dynamic_loss_scale", rule)
    rule = optax.with_extra_args_support(rule)
    problems = Problems("dynamic_loss_scale")
    if not hasattr(factor, "aval") and factor <= 1:
        problems.add(f"factor is out of range, got {factor!r}", allowed="a number above 1")
    if not any(hasattr(x, "aval") for x in (least, initial, most)) and not least <= initial <= most:
        problems.add(f"initial is out of range, got {initial!r}", allowed=f"least={least!r} to most={most!r}")
    problems.raise_if_any()

    def init(params: Params) -> DynamicLossScaleState:
        check_order(Wrapper.LOSS_SCALE)
        with deciding(axis_name):
            inner = rule.init(params)
        good, skipped = (jnp.zeros((), jnp.int32) for _ in range(2))
        return DynamicLossScaleState(jnp.asarray(initial, jnp.float32), good, skipped, inner)

    def update(
        updates: Updates, state: DynamicLossScaleState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, DynamicLossScaleState]:
        check_state("dynamic_loss_scale", DynamicLossScaleState, state)
        updates = present(updates)
        good = all_finite(updates, axis_name)

        def unscaled(g: Array) -> Array:
            dtype = accumulation_dtype(g.dtype)
            return g.astype(dtype) / state.scale.astype(dtype)

        own = jax.tree.map(unscaled, updates)
        with explained("dynamic_loss_scale", rule.init, state.inner, own, params):
            changes, inner = rule.update(own, state.inner, params, **extra)
        changes, inner = only_if(good, changes, inner, state.inner)
        grows = good & (state.good + 1 >= interval)
        by = jnp.asarray(factor, jnp.float32)
        up, down = jnp.minimum(state.scale * by, most), jnp.maximum(state.scale / by, least)
        return changes, DynamicLossScaleState(
            scale=jnp.where(good, jnp.where(grows, up, state.scale), down).astype(jnp.float32),
            good=jnp.where(good & ~grows, safe_increment(state.good), 0),
            skipped=jnp.where(good, state.skipped, safe_increment(state.skipped)),
            inner=inner,
        )

    return make_rule(init, update)


def loss_scale(state: State) -> Float[Array, ""]:
    """The scale that the next loss is to be multiplied with.

    Args:
      state: of a rule that has `dynamic_loss_scale` somewhere in it.

    Raises:
      ValueError: it has none, or several.
    """
    parts = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, DynamicLossScaleState) or is_past(x))
    found = [x.scale for x in parts if isinstance(x, DynamicLossScaleState)]
    if len(found) > 1:
        wrong = f"the state has {len(found)} scales, and a loss can be multiplied with one"
        raise ValueError(message("loss_scale", wrong, do="Write dynamic_loss_scale(partition(...))"))
    if not found:
        do = "Wrap the rule in dynamic_loss_scale"
        raise ValueError(message("loss_scale", "the state has no scale", do=do))
    return found[0]
