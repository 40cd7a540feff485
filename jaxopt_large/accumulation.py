"""Large batches in small pieces: accumulate gradients over micro-batches, step once."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from ._axes import is_surrounded_by, sum_over_shards, surrounded_by
from ._compat import like_varying
from ._errors import Problems, message
from ._numerics import accumulation_dtype, safe_increment
from ._types import AnyRule, Params, Rule, Scalar, State, Updates, make_rule
from .safety import all_finite

Mode = Literal["sharded", "deferred"]
NonFinite = Literal["skip_micro_batch", "skip_step", "keep"]


class AccumulateState(NamedTuple):
    """State of `accumulate`."""

    micro_step: Int[Array, ""]  # micro-batches seen of this step
    left_out: Int[Array, ""]  # of these, how many were not finite
    skipped: Int[Array, ""]  # micro-batches left out so far, in all steps
    weight: Float[Array, ""]  # of the micro-batches in `total`
    total: Updates  # the weighted sum of their gradients, float32
    inner: State  # the wrapped rule's


def accumulate(
    rule: AnyRule,
    steps: int,
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
      steps: micro-batches per step, at least 1.
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
        if mode == "deferred" and is_surrounded_by("zero"):
            raise ValueError(
                message(
                    "accumulate",
                    "mode 'deferred' is inside zero, which has reduced the gradients already",
                    do="Write accumulate(zero(...), ..., mode='deferred'), or use mode 'sharded'",
                )
            )
        with surrounded_by(f"accumulate {mode}"):
            inner = rule.init(params)
        total = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=accumulation_dtype(p.dtype)), params)
        zero = jnp.zeros((), jnp.int32)
        return AccumulateState(zero, zero, zero, jnp.zeros((), jnp.float32), total, inner)

    def update(
        updates: Updates,
        state: AccumulateState,
        params: Params | None = None,
        *,
        weight: Scalar | None = None,
        **extra: Any,
    ) -> tuple[Updates, AccumulateState]:
        good = jnp.bool_(True) if nonfinite == "keep" else all_finite(updates, axis_name)
        weight = jnp.where(good, jnp.asarray(1.0 if weight is None else weight, jnp.float32), 0.0)
        total = jax.tree.map(lambda t, g: t + _weighed(g, weight, good, t.dtype), state.total, updates)
        total_weight = state.weight + weight
        left_out = state.left_out + (~good).astype(jnp.int32)
        last = state.micro_step + 1 >= steps
        overall = sum_over_shards(total_weight, axis_name) if mode == "deferred" else total_weight
        runs = last & (overall > 0)
        if nonfinite == "skip_step":
            runs &= left_out == 0
        if mode == "deferred":
            extra["weight"] = total_weight

        def step(total: Updates, inner: State) -> tuple[Updates, State]:
            divisor = jnp.where(total_weight > 0, total_weight, 1.0)
            mean = jax.tree.map(lambda t, g: (t / divisor.astype(t.dtype)).astype(g.dtype), total, updates)
            return rule.update(mean, inner, params, **extra)

        changes, inner = _run_if(runs, step, total, state.inner)
        fresh = AccumulateState(
            micro_step=jnp.where(last, 0, state.micro_step + 1),
            left_out=jnp.where(last, 0, left_out),
            skipped=jnp.where(good, state.skipped, safe_increment(state.skipped)),
            weight=jnp.where(last, 0.0, total_weight),
            total=jax.tree.map(lambda t: jnp.where(last, jnp.zeros_like(t), t), total),
            inner=inner,
        )
        return changes, fresh

    return make_rule(init, update)


def _check(rule: Any, steps: Any, mode: Any, axis_name: Any, nonfinite: Any) -> None:
    types, values = Problems("accumulate"), Problems("accumulate")
    if not (hasattr(rule, "init") and hasattr(rule, "update")):
        types.add(f"rule is not a rule, got {rule!r}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        values.add(f"steps is out of range, got {steps!r}", allowed="an integer >= 1")
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


def _weighed(g: Array, weight: Array, good: Array, dtype: Any) -> Array:
    """weight x g; 0 for a micro-batch that is left out, whatever it holds."""
    return jnp.where(good, g.astype(dtype) * weight.astype(dtype), jnp.zeros((), dtype))


def _run_if(
    runs: Array, step: Callable[..., tuple[Updates, State]], total: Updates, inner: State
) -> tuple[Updates, State]:
    """`step(total, inner)`, or updates of -0.0 and the state as it is."""
    changes = jax.eval_shape(step, total, inner)[0]

    def wait(total: Updates, inner: State) -> tuple[Updates, State]:
        del total
        return jax.tree.map(lambda u: like_varying(jnp.full(u.shape, -0.0, u.dtype), u), changes), inner

    return jax.lax.cond(runs, step, wait, total, inner)


# --- gradients of a batch that is at hand -------------------------------------------------------------


def microbatched_grad(loss_fn: Callable[..., Any], steps: int, **options: Any) -> Callable[..., Any]:
    """`microbatched_value_and_grad`, without the value: like `jax.grad` beside `jax.value_and_grad`."""
    both = microbatched_value_and_grad(loss_fn, steps, **options)

    def gradient(params: Params, batch: Any) -> Updates:
        return both(params, batch)[1]

    return gradient


def microbatched_value_and_grad(
    loss_fn: Callable[..., Any],
    steps: int,
    *,
    mode: Mode = "sharded",
    shardings: Any = None,
    mesh: Mesh | None = None,
    axis: str | None = None,
    weight: Callable[[Any], Scalar] | None = None,
) -> Callable[[Params, Any], tuple[Array, Updates]]:
    """Loss and gradient of a batch, computed in `steps` micro-batches, accumulated in float32.

    Micro-batch i holds the rows i, i + steps, ... of every leaf of the batch, so that each device keeps
    the rows it has.

    "sharded": each micro-batch's gradient is reduced into accumulators that are divided as `shardings`
    says, which `jl.gradient_shardings(rule, params)` knows. Inside `shard_map` or `pmap`, where
    gradients are each device's own, leave `shardings` out: nothing is reduced.

    "deferred", under `jit`: each part of the mesh along `axis` adds up its own gradients, which are
    reduced once, at the end: one reduction instead of `steps`, for accumulators of full size.

    Args:
      loss_fn: (params, batch) -> loss, a mean over the batch's rows.
      steps: micro-batches; the leading axis of every leaf of the batch must be divisible by it.
      mode: "sharded" or "deferred".
      shardings: a tree of shardings like the parameters, for the accumulators.
      mesh: for "deferred".
      axis: its axis over which the batch is divided, for "deferred".
      weight: micro-batch -> its weight in the mean, say its number of tokens; all alike by default.

    Returns:
      (params, batch) -> (loss, gradient in the parameters' dtypes).

    Raises:
      ValueError: steps < 1; when called, a batch that is not divisible.
      TypeError: "deferred" without a mesh and an axis.

    >>> loss = lambda w, x: jnp.mean((x @ w) ** 2)
    >>> w, x = jnp.ones(2), jnp.arange(8.0).reshape(4, 2)
    >>> value, gradient = jl.microbatched_value_and_grad(loss, 2)(w, x)
    >>> bool(jnp.allclose(gradient, jax.grad(loss)(w, x)))
    True
    """
    who = "microbatched_grad"
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(message(who, f"steps is out of range, got {steps!r}", allowed="an integer >= 1"))
    if mode not in ("sharded", "deferred"):
        raise ValueError(message(who, f"mode is unknown, got {mode!r}", allowed="'sharded' or 'deferred'"))
    if mode == "deferred" and (mesh is None or axis is None):
        raise TypeError(message(who, f"mode 'deferred' needs a mesh and an axis, got {mesh!r}, {axis!r}"))

    def local(params: Params, batch: Any) -> tuple[Array, Updates]:
        return mean_gradient(loss_fn, params, _split(batch, steps), shardings=shardings, weight=weight)

    if mode == "sharded":
        return local

    def deferred(params: Params, batch: Any) -> tuple[Array, Updates]:
        def own(params: Params, batch: Any) -> tuple[Array, Updates]:
            loss, grads = local(params, batch)
            own_weight = jnp.float32(1.0) if weight is None else jnp.asarray(weight(batch), jnp.float32)
            share = own_weight / jax.lax.psum(own_weight, axis)
            return jax.tree.map(lambda x: jax.lax.psum(x * share.astype(x.dtype), axis), (loss, grads))

        whole, divided = PartitionSpec(), PartitionSpec(axis)
        mapped = jax.shard_map(
            own,
            mesh=mesh,
            in_specs=(whole, divided),
            out_specs=whole,
            axis_names={axis},
            check_vma=False,
        )
        return mapped(params, batch)

    return deferred


def mean_gradient(
    loss_fn: Callable[..., Any],
    params: Params,
    micro_batches: Any,
    *,
    shardings: Any = None,
    weight: Callable[[Any], Scalar] | None = None,
) -> tuple[Array, Updates]:
    """The mean loss and gradient over the leading axis of `micro_batches`, summed in float32."""
    gradient = jax.value_and_grad(loss_fn)
    steps = jax.tree.leaves(micro_batches)[0].shape[0]
    if steps == 1:
        return gradient(params, jax.tree.map(lambda x: x[0], micro_batches))

    def placed(total: Updates) -> Updates:
        if shardings is None:
            return total
        return jax.tree.map(jax.lax.with_sharding_constraint, total, shardings)

    def add(carry: Any, micro: Any) -> tuple[Any, None]:
        total, weights = carry
        own = jnp.float32(1.0) if weight is None else jnp.asarray(weight(micro), jnp.float32)
        new = gradient(params, micro)
        total = jax.tree.map(lambda t, x: t + x.astype(t.dtype) * own.astype(t.dtype), total, new)
        return ((total[0], placed(total[1])), weights + own), None

    def zeros(p: Any) -> Array:
        return like_varying(jnp.zeros(p.shape, accumulation_dtype(p.dtype)), p)

    start = (jnp.zeros((), jnp.float32), placed(jax.tree.map(zeros, params)))
    ((loss, total), weights), _ = jax.lax.scan(add, (start, jnp.zeros((), jnp.float32)), micro_batches)
    mean = jax.tree.map(lambda t, p: (t / weights.astype(t.dtype)).astype(p.dtype), total, params)
    return loss / weights, mean


def _split(batch: Any, steps: int) -> Any:
    """[rows, ...] -> [steps, rows / steps, ...]: rows stay on their devices in this order only."""

    def split(x: Array) -> Array:
        rows = x.shape[0] if x.ndim else 0
        if rows == 0 or rows % steps:
            raise ValueError(
                message(
                    "microbatched_grad",
                    f"a leaf of the batch has shape {x.shape}",
                    allowed=f"a leading axis divisible by steps={steps}",
                )
            )
        return x.reshape(rows // steps, steps, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(split, batch)
