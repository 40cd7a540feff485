"""Large batches in small pieces: accumulate gradients over micro-batches, step once."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from ._axes import sum_over_shards
from ._compat import like_varying
from ._device_sums import DeviceSum, own_part
from ._errors import Problems, is_rule, message
from ._finite import all_finite
from ._gradients import Gradients, add_other_shapes, in_order
from ._nodes import StateNode, nodes_in
from ._numerics import accumulation_dtype, safe_increment
from ._order import Wrapper, check_order, inside
from ._states import check_state, explained
from ._static import is_placeholder
from ._types import AnyRule, Params, Rule, Scalar, Schedule, State, Updates, make_rule

Mode = Literal["sharded", "deferred"]
NonFinite = Literal["skip_micro_batch", "skip_step", "keep"]


class AccumulateState(NamedTuple):
    """State of `accumulate`."""

    micro_step: Int[Array, ""]  # micro-batches seen of this step
    left_out: Int[Array, ""]  # of these, how many were not finite
    skipped: Int[Array, ""]  # micro-batches left out so far, in all steps
    weight: Any  # of the micro-batches in `total`, a float32 scalar; a `DeviceSum` of it when deferred
    total: Updates  # the weighted sum of their gradients, float32; a `DeviceSum` of it when deferred
    inner: State  # the wrapped rule's
    made: Int[Array, ""] | None = None  # steps made, where a schedule asks for them


def accumulate(
    rule: AnyRule,
    steps: int | Schedule,
    mode: Mode = "sharded",
    *,
    axis_name: str | None = None,
    nonfinite: NonFinite = "skip_micro_batch",
) -> Rule:
    r"""Runs a rule once every `steps` calls, on the mean gradient of the micro-batches between.

    $$g = \sum_i w_i g_i \Big/ \sum_i w_i$$

    The sum is kept in float32 (float64 when the gradient is). Other calls return updates of -0.0, which
    change no bit of a parameter, and run nothing of the rule: its schedules and moments count steps,
    not micro-batches. `update(..., weight=n)` weighs a micro-batch, say by its number of tokens.
    `update(..., flush=True)` runs the rule on what there is, at the end of training: see `flush`.

    "sharded": the accumulators are divided like the state, by a `zero` around this rule (ZeRO-2); each
    micro-batch's gradient is reduced when it comes.

        rule = jl.zero(jl.accumulate(jl.adamw(3e-4), 8), mesh, "data")

    "deferred": inside a mapped axis each device adds up its own gradients, whole, and a `zero` within
    reduces them once per step: one exchange instead of `steps`, for more memory.

        rule = jl.accumulate(jl.zero(jl.adamw(3e-4), axis_name="data"), 8, "deferred", axis_name="data")

    Under `jit` gradients are whole before a rule sees them; `microbatched_grad(..., mode="deferred")`
    defers their reduction there.

    Args:
      rule: runs on the mean gradient.
      steps: micro-batches per step, at least 1; or a schedule, from the number of steps made to that of the
        micro-batches of the next one, for batches that grow.
      mode: "sharded" or "deferred".
      axis_name: the mapped axis along which gradients differ between devices: needed by "deferred".
      nonfinite: what a micro-batch does whose gradient holds a NaN or an infinity, on any device:
        "skip_micro_batch" leaves it out of the mean (and the step, when none is left), "skip_step"
        leaves out the whole step, "keep" lets it through. Nothing of it stays in the accumulators.

    Returns:
      The rule; its state is `AccumulateState`.

    Raises:
      ValueError: steps < 1, an unknown mode or nonfinite; an order that cannot work: "deferred" inside
        `zero`, "sharded" around it.
      TypeError: "deferred" without an axis_name; a rule that is none.
      ValueError: from `init`, "deferred" around a rule in which no `zero` on the axis reduces the
        gradients of all parameters.

    Source: Rajbhandari et al. 2020, arXiv:1910.02054, section 5.2 (ZeRO-2).

    >>> rule = jl.accumulate(jl.gradient_descent(1.0), 2)
    >>> state = rule.init(jnp.zeros(2))
    >>> first, state = rule.update(jnp.ones(2), state)
    >>> second, state = rule.update(3 * jnp.ones(2), state)
    >>> first.tolist(), second.tolist()
    ([-0.0, -0.0], [-2.0, -2.0])
    """
    _check(rule, steps, mode, axis_name, nonfinite)
    rule = optax.with_extra_args_support(rule)

    def init(params: Params) -> AccumulateState:
        kind = Wrapper.ACCUMULATE_DEFERRED if mode == "deferred" else Wrapper.ACCUMULATE_SHARDED
        check_order(kind)
        skips = inside(Wrapper.ACCUMULATE_SKIPS) if nonfinite != "keep" else contextlib.nullcontext()
        with inside(kind), skips:
            inner = rule.init(params)
        if mode == "deferred" and not is_placeholder(params):
            _check_reduced(inner, params, axis_name)
        sums = (
            jnp.zeros((), jnp.float32),
            jax.tree.map(lambda p: jnp.zeros_like(p, dtype=accumulation_dtype(p.dtype)), params),
        )
        weight, total = sums if mode == "sharded" else (own_part(x, axis_name) for x in sums)
        a, b, c, d = (jnp.zeros((), jnp.int32) for _ in range(4))  # a buffer each, to be donated
        return AccumulateState(a, b, c, weight, total, inner, d if callable(steps) else None)

    def update(
        updates: Updates,
        state: AccumulateState,
        params: Params | None = None,
        *,
        weight: Scalar | None = None,
        flush: Any = False,
        **extra: Any,
    ) -> tuple[Updates, AccumulateState]:
        check_state("accumulate", AccumulateState, state)
        seen_total, seen_weight = _parts(state.total), _parts(state.weight)
        gradients = in_order("accumulate", updates, params, len(jax.tree.leaves(seen_total)))
        totals, treedef = jax.tree.flatten(seen_total)
        _check_gradients(gradients, totals)
        good = jnp.bool_(True) if nonfinite == "keep" else all_finite(gradients.leaves, axis_name)
        weight = jnp.where(good, jnp.asarray(1.0 if weight is None else weight, jnp.float32), 0.0)
        total = [
            t if g is None else _added(t, g, weight, good)
            for t, g in zip(totals, gradients.leaves, strict=True)
        ]
        total_weight = seen_weight + weight
        left_out = state.left_out + (~good).astype(jnp.int32)
        made: Any = state.made
        wanted = jnp.asarray(steps(made)).astype(jnp.int32) if callable(steps) else steps
        last = (state.micro_step + 1 >= wanted) | jnp.asarray(flush, bool)
        overall = sum_over_shards(total_weight, axis_name) if mode == "deferred" else total_weight
        runs = last & (overall > 0)
        if nonfinite == "skip_step":
            runs &= left_out == 0
        if mode == "deferred":
            extra["weight"] = total_weight

        def step(total: list[Any], inner: State) -> tuple[Updates, State]:
            divisor = jnp.where(total_weight > 0, total_weight, 1.0)
            mean = [
                None if g is None else _mean(t, divisor, g.dtype)
                for t, g in zip(total, gradients.leaves, strict=True)
            ]
            own = gradients.treedef.unflatten(mean)
            with explained("accumulate", rule.init, inner, own, params):
                return rule.update(own, inner, params, **extra)

        changes, inner = _run_if(runs, step, total, state.inner)
        kept_weight = jnp.where(last, 0.0, total_weight)
        kept_total = treedef.unflatten([_kept(t, last) for t in total])
        if mode == "deferred":
            kept_weight, kept_total = (own_part(x, axis_name) for x in (kept_weight, kept_total))
        fresh = AccumulateState(
            micro_step=jnp.where(last, 0, state.micro_step + 1),
            left_out=jnp.where(last, 0, left_out),
            skipped=jnp.where(good, state.skipped, safe_increment(state.skipped)),
            weight=kept_weight,
            total=kept_total,
            inner=inner,
            made=None if state.made is None else jnp.where(runs, safe_increment(state.made), state.made),
        )
        return changes, fresh

    return make_rule(init, update)


def flush(rule: AnyRule, state: State, params: Params, **extra: Any) -> tuple[Updates, State]:
    """The step of a window that did not fill: on the mean of the micro-batches that there are.

    Args:
      rule: with `accumulate` in it, wrapped or not.
      state: after the last micro-batch.
      params: the parameters.
      **extra: further arguments of `update`.

    Returns:
      (updates, state), as `update` gives them; updates of -0.0 where no micro-batch is waiting.

    >>> rule, params = jl.accumulate(jl.sgd(1.0), 4), jnp.zeros(1)
    >>> state = rule.init(params)
    >>> for g in (1.0, 3.0):
    ...     _, state = rule.update(jnp.array([g]), state, params)
    >>> updates, state = jl.flush(rule, state, params)
    >>> updates.tolist()
    [-2.0]
    """
    nothing = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=accumulation_dtype(p.dtype)), params)
    update = optax.with_extra_args_support(rule).update
    return update(nothing, state, params, weight=jnp.float32(0.0), flush=True, **extra)


def _check(rule: Any, steps: Any, mode: Any, axis_name: Any, nonfinite: Any) -> None:
    types, values = Problems("accumulate"), Problems("accumulate")
    if not is_rule(rule):
        types.add(f"rule is not a rule, got {rule!r}")
    if not callable(steps) and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        values.add(f"steps is out of range, got {steps!r}", allowed="an integer >= 1, or a schedule")
    if mode not in ("sharded", "deferred"):
        values.add(f"mode is unknown, got {mode!r}", allowed="'sharded' or 'deferred'")
    if nonfinite not in ("skip_micro_batch", "skip_step", "keep"):
        allowed = "'skip_micro_batch', 'skip_step' or 'keep'"
        values.add(f"nonfinite is unknown, got {nonfinite!r}", allowed=allowed)
    if mode == "deferred" and axis_name is None:
        types.add(
            "mode 'deferred' needs an axis_name, got None",
            do="Name the mapped axis, or use microbatched_grad(..., mode='deferred') under jit",
        )
    types.raise_if_any(TypeError)
    values.raise_if_any()


def _check_reduced(inner: State, params: Params, axis_name: str | None) -> None:
    """Raises unless a `zero` on the axis reduces the gradient of every parameter."""
    found = nodes_in(inner, StateNode.reduced_gradients)
    reduced = sum(node.reduced_gradients(axis_name) for node, _, _ in found)
    expected = len(jax.tree.leaves(params))
    if reduced != expected:
        raise ValueError(
            message(
                "accumulate",
                f"mode 'deferred' has gradients that nothing reduces over {axis_name!r}: "
                f"zero covers {reduced} of {expected} parameters",
                do=f"Write accumulate(zero(rule, axis_name={axis_name!r}), ..., mode='deferred')",
            )
        )


def _check_gradients(gradients: Gradients, totals: list[Any]) -> None:
    if len(gradients.leaves) != len(totals):
        wrong = f"there are {len(gradients.leaves)} gradients"
        raise ValueError(message("accumulate", wrong, allowed=f"init got {len(totals)} parameters"))
    problems, shapes = Problems("accumulate"), [t.shape for t in totals]
    add_other_shapes(problems, "a gradient", gradients.leaves, shapes, gradients.treedef)
    problems.raise_if_any()


def _parts(x: Any) -> Any:
    """A sum as this device has it."""
    return x.mine() if isinstance(x, DeviceSum) else x


# --- of a leaf: traced once for all leaves of a shape ---------------------------------------------------


@jax.jit
def _added(total: Array, g: Array, weight: Array, good: Array) -> Array:
    """total + weight x g; nothing for a micro-batch that is left out, whatever it holds."""
    dtype = total.dtype
    return total + jnp.where(good, g.astype(dtype) * weight.astype(dtype), jnp.zeros((), dtype))


@functools.partial(jax.jit, static_argnums=2)
def _mean(total: Array, weight: Array, dtype: Any) -> Array:
    return (total / weight.astype(total.dtype)).astype(dtype)


@jax.jit
def _kept(total: Array, last: Array) -> Array:
    return jnp.where(last, jnp.zeros_like(total), total)


# --- the step ------------------------------------------------------------------------------------------


def _run_if(
    runs: Array, step: Callable[..., tuple[Updates, State]], total: list[Any], inner: State
) -> tuple[Updates, State]:
    """`step(total, inner)`, or updates of -0.0 and the state as it is."""
    once = jax.jit(step)  # traced once, for its shapes and for the branch
    changes, _ = jax.eval_shape(once, total, inner)

    def wait(total: list[Any], inner: State) -> tuple[Updates, State]:
        del total
        return jax.tree.map(lambda u: like_varying(jnp.full(u.shape, -0.0, u.dtype), u), changes), inner

    return jax.lax.cond(runs, once, wait, total, inner)
