"""Gradients of a batch that is at hand, computed in micro-batches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from ._compat import constrained, like_varying
from ._errors import message
from ._numerics import accumulation_dtype
from ._types import Params, Scalar, Updates
from .accumulation import Mode


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
    if not callable(loss_fn):
        raise TypeError(message(who, f"loss_fn is not a function, got {loss_fn!r}"))
    if mode not in ("sharded", "deferred"):
        raise ValueError(message(who, f"mode is unknown, got {mode!r}", allowed="'sharded' or 'deferred'"))
    if mode == "deferred" and (mesh is None or axis is None):
        raise TypeError(message(who, f"mode 'deferred' needs a mesh and an axis, got {mesh!r}, {axis!r}"))

    def local(params: Params, batch: Any) -> tuple[Array, Updates]:
        return mean_gradient(loss_fn, params, _split(batch, steps), shardings=shardings, weight=weight)

    if mode == "sharded":
        return local

    return reduced_once(local, mesh, axis, PartitionSpec(axis), weight=weight)


def reduced_once(
    gradient: Callable[[Params, Any], tuple[Array, Updates]],
    mesh: Any,
    axis: Any,
    spec: PartitionSpec,
    *,
    weight: Callable[[Any], Scalar] | None = None,
) -> Callable[[Params, Any], tuple[Array, Updates]]:
    """Loss and gradient of each part of the mesh along an axis, on its own, and their one mean.

    Args:
      gradient: (params, batch) -> (loss, gradient), of what a part has of the batch.
      mesh: the mesh.
      axis: its axis that divides the batch; all others are left to the compiler.
      spec: of each leaf of the batch.
      weight: batch -> its weight in the mean; all alike by default.
    """

    def own(params: Params, batch: Any) -> tuple[Array, Updates]:
        loss, grads = gradient(params, batch)
        own_weight = jnp.float32(1.0) if weight is None else jnp.asarray(weight(batch), jnp.float32)
        whole_weight = jax.lax.psum(own_weight, axis)
        share = own_weight / jnp.where(whole_weight > 0, whole_weight, 1.0)
        return jax.tree.map(lambda x: jax.lax.psum(x * share.astype(x.dtype), axis), (loss, grads))

    whole = PartitionSpec()
    return jax.shard_map(
        own, mesh=mesh, in_specs=(whole, spec), out_specs=whole, axis_names={axis}, check_vma=False
    )


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

    def placed(tree: Updates) -> Updates:
        return tree if shardings is None else jax.tree.map(constrained, tree, shardings)

    if steps == 1:
        micro = jax.tree.map(lambda x: x[0], micro_batches)
        loss, grads = gradient(params, micro)
        loss, grads = loss.astype(accumulation_dtype(loss.dtype)), placed(grads)
        if weight is None:
            return loss, grads
        counts = jnp.asarray(weight(micro), jnp.float32) > 0
        return jax.tree.map(lambda x: x * counts.astype(x.dtype), (loss, grads))

    dtypes: list[Any] = []  # of the loss, known once it is traced

    def add(carry: Any, micro: Any) -> tuple[Any, None]:
        total, weights = carry
        own = jnp.float32(1.0) if weight is None else jnp.asarray(weight(micro), jnp.float32)
        loss, grads = gradient(params, micro)
        dtypes.append(accumulation_dtype(loss.dtype))
        new = loss, placed(grads)
        total = jax.tree.map(lambda t, x: t + x.astype(t.dtype) * own.astype(t.dtype), total, new)
        return (total, weights + own), None

    def zeros(p: Any) -> Array:
        return like_varying(jnp.zeros(p.shape, accumulation_dtype(p.dtype)), p)

    start = (jnp.zeros((), float), placed(jax.tree.map(zeros, params)))
    ((loss, total), weights), _ = jax.lax.scan(add, (start, jnp.zeros((), jnp.float32)), micro_batches)
    divisor = jnp.where(weights > 0, weights, 1.0)  # one device may have no tokens at all
    mean = jax.tree.map(lambda t, p: (t / divisor.astype(t.dtype)).astype(p.dtype), total, params)
    return (loss / divisor.astype(loss.dtype)).astype(dtypes[0]), mean


def _split(batch: Any, steps: int) -> Any:
    """[rows, ...] -> [steps, rows / steps, ...]: rows stay on their devices in this order only."""

    def split(x: Array) -> Array:
        rows = jnp.shape(x)[0] if jnp.ndim(x) else 0
        if rows == 0 or rows % steps:
            raise ValueError(
                message(
                    "microbatched_grad",
                    f"a leaf of the batch has shape {jnp.shape(x)}",
                    allowed=f"a leading axis divisible by steps={steps}",
                )
            )
        return x.reshape(rows // steps, steps, *x.shape[1:]).swapaxes(0, 1)

    if not jax.tree.leaves(batch):
        raise ValueError(message("microbatched_grad", "the batch has no arrays", do="Pass at least one"))
    return jax.tree.map(split, batch)
