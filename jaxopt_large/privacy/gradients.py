"""The gradient of DP-SGD: each example's clipped, summed, with noise on the sum (Abadi et al. 2016)."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._axes import sum_over_shards
from .._compat import as_varying, like_varying
from .._errors import NON_NEGATIVE, POSITIVE, Problems, message, number_problem
from .._global_norm import global_norm
from .._numerics import accumulation_dtype, real_dtype
from .._types import Params, Updates

_BELOW = 1 - 2.0**-18  # times the clip: what rounding may add to a norm of many elements is less
_SMALLEST = 1e-15


class PrivateReport(NamedTuple):
    """What a step found in its examples. It is NOT private: what leaves the machine should not hold it."""

    loss: Float[Array, ""]  # mean over the examples that are there
    examples: Int[Array, ""]  # how many
    clipped: Int[Array, ""]  # how many had a gradient longer than the clip
    nonfinite: Int[Array, ""]  # how many had a NaN or an infinity in it, and count as 0


def private_gradients(
    loss_fn: Callable[[Params, Any], Any],
    clip: float,
    noise_multiplier: float,
    key: Any,
    expected_batch: float,
    *,
    microbatch_size: int | None = None,
    axis_name: Any = None,
) -> Callable[..., tuple[Updates, PrivateReport]]:
    r"""Gradients for differentially private training: a function of parameters, examples and the step.

    $$g_t = \frac{1}{B} \left( \sum_{i \in \text{batch}} g_{t,i} \min(1, C / \lVert g_{t,i} \rVert)
      + \mathcal{N}(0, (\sigma C)^2 I) \right)$$

    Norms are over all leaves. Clipping, sum and noise are in float32 (float64 for float64), whatever the
    parameters' dtype; the result is rounded to it once. $B$ is the *expected* number of examples, not the one
    that was drawn: that is private too.

        gradient = jl.private_gradients(loss_fn, 1.0, 1.1, jax.random.key(seed), 256)
        grads, report = gradient(params, batch, step, mask=mask)

    The noise is a function of `key`, the step and the leaf: give each step of a run another number, the same
    one after a restart, and each run another key. Keep the key secret, and beside the state in checkpoints.

    An example whose gradient is not finite counts as 0, and in the report.

    What it does not protect from: a batch that is no Poisson sample of the data while `privacy_spent` takes
    it for one; several examples of one person; hyper-parameters, a validation loss or a report that were read
    off the private data; who sees the key or the noise; timing. Layers that mix a batch's examples (batch
    normalization) have no place in `loss_fn`: it sees one example.

    Args:
      loss_fn: (parameters, example) -> loss of one example, without a batch axis.
      clip: $C > 0$, the most that an example's gradient may be long.
      noise_multiplier: $\sigma \ge 0$, the noise's standard deviation over the clip.
      key: a random key; there is no default.
      expected_batch: $B > 0$: the sampling rate times the number of examples.
      microbatch_size: examples whose gradients are in memory at a time; by default all.
      axis_name: inside `shard_map` or `pmap`, the axis over which the examples are divided. The noise is
        added once, to the sum over all devices.

    Returns:
      (parameters, batch, step, mask=None) -> (gradients, `PrivateReport`). Leaves of `batch` have a leading
      axis of examples; `mask` is False for those that only fill the shape.

    Raises:
      ValueError: a number is out of range.
      TypeError: there is no key, or loss_fn is no function.

    Source: Abadi et al. 2016, arXiv:1607.00133, algorithm 1.

    >>> loss = lambda w, x: jnp.sum((w - x) ** 2)
    >>> gradient = jl.private_gradients(loss, 1.0, 0.0, jax.random.key(0), 4)
    >>> grads, report = gradient(jnp.zeros(2), jnp.array([[3.0, 4.0], [0.0, 0.1]]), 0)
    >>> [round(x, 2) for x in grads.tolist()], int(report.clipped)
    ([-0.15, -0.25], 1)
    """
    _check(loss_fn, clip, noise_multiplier, key, expected_batch, microbatch_size)

    def gradient(
        params: Params, batch: Any, step: Any, mask: Bool[Array, " examples"] | None = None
    ) -> tuple[Updates, PrivateReport]:
        count = _examples_in(batch)
        there = jnp.ones((count,), bool) if mask is None else jnp.asarray(mask, bool)
        if there.shape != (count,):
            allowed = f"one for each of {count} examples"
            raise ValueError(message(_WHO, f"mask has shape {there.shape}", allowed=allowed))
        if not jnp.issubdtype(jnp.result_type(step), jnp.integer):
            raise TypeError(message(_WHO, f"step is no whole number, got {step!r}"))
        # what differs between devices is an example's gradient, not the sum of theirs over devices
        own = params if axis_name is None else jax.tree.map(lambda p: as_varying(p, axis_name), params)
        total, loss, counts = _summed(loss_fn, own, batch, there, clip, microbatch_size or count)
        if axis_name is not None:
            total, loss, counts = sum_over_shards((total, loss, counts), axis_name)
        grads = _noisy(total, params, clip * noise_multiplier, jax.random.fold_in(key, step), expected_batch)
        examples, clipped, nonfinite = counts
        mean = loss / jnp.maximum(examples, 1).astype(loss.dtype)
        return grads, PrivateReport(mean, examples, clipped, nonfinite)

    return gradient


_WHO = "private_gradients"


def _check(loss_fn: Any, clip: Any, noise: Any, key: Any, expected: Any, micro: Any) -> None:
    types, values = Problems(_WHO), Problems(_WHO)
    if not callable(loss_fn):
        types.add(f"loss_fn is no function, got {loss_fn!r}")
    number_problem("clip", clip, POSITIVE, types, values)
    if not values.found and not types.found and not hasattr(clip, "aval") and clip < _SMALLEST:
        values.add(
            f"clip is too small, got {clip!r}", allowed=f"at least {_SMALLEST:g}, whose square float32 has"
        )
    number_problem("noise_multiplier", noise, NON_NEGATIVE, types, values)
    number_problem("expected_batch", expected, POSITIVE, types, values)
    if not (hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ()):
        do = "Pass jax.random.key(...) of a number that nobody else has"
        types.add(f"key is no random key, got {type(key).__name__}", do=do)
    if micro is not None and (isinstance(micro, bool) or not isinstance(micro, int) or micro < 1):
        values.add(f"microbatch_size is out of range, got {micro!r}", allowed="a whole number >= 1")
    if types.found:
        types.found += values.found
    types.raise_if_any(TypeError)
    values.raise_if_any()


def _examples_in(batch: Any) -> int:
    sizes = {np.shape(x)[0] if np.ndim(x) else 0 for x in jax.tree.leaves(batch)}
    if len(sizes) != 1 or 0 in sizes:
        wrong = f"leaves of the batch have no one number of examples, got {sorted(sizes)}"
        raise ValueError(message(_WHO, wrong, allowed="one leading axis for all"))
    return sizes.pop()


def _summed(
    loss_fn: Callable[..., Any], params: Params, batch: Any, there: Array, clip: Any, size: int
) -> tuple[Updates, Array, tuple[Array, Array, Array]]:
    """The sum of clipped gradients, of losses, and counts: examples, clipped, not finite."""
    count = there.shape[0]
    parts = math.ceil(count / size)
    rows = parts * size

    def divided(x: Any) -> Array:
        x = jnp.asarray(x)
        padded = (
            jnp.concatenate([x, jnp.broadcast_to(x[:1], (rows - count, *x.shape[1:]))]) if rows > count else x
        )
        return padded.reshape(parts, size, *x.shape[1:])

    is_there = jnp.concatenate([there, jnp.zeros((rows - count,), bool)]).reshape(parts, size)

    def one(example: Any, is_there: Array) -> tuple[Updates, Array, tuple[Array, Array, Array]]:
        loss, grads = jax.value_and_grad(loss_fn)(params, example)
        wide = jax.tree.map(lambda g: g.astype(accumulation_dtype(g.dtype)), grads)
        norm = global_norm(wide)
        good = is_there & jnp.isfinite(norm)
        limit = jnp.asarray(clip, norm.dtype) * jnp.asarray(_BELOW, norm.dtype)
        factor = jnp.where(norm > limit, limit / norm, jnp.ones((), norm.dtype))
        clipped = jax.tree.map(
            lambda g: jnp.where(good, g * factor.astype(real_dtype(g.dtype)), jnp.zeros_like(g)), wide
        )
        loss = jnp.where(good, loss, jnp.zeros_like(loss)).astype(accumulation_dtype(loss.dtype))
        counts = is_there, good & (norm > limit), is_there & ~jnp.isfinite(norm)
        return clipped, loss, tuple(c.astype(jnp.int32) for c in counts)  # type: ignore[return-value]

    def part(examples: Any, is_there: Array) -> Any:
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), jax.vmap(one)(examples, is_there))

    if parts == 1:
        return part(jax.tree.map(lambda x: divided(x)[0], batch), is_there[0])

    def add(sums: Any, some: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, part(*some)), None

    pieces = jax.tree.map(divided, batch), is_there
    shapes = jax.eval_shape(part, *jax.tree.map(lambda x: x[0], pieces))
    first = jax.tree.leaves(pieces)[0]
    start = jax.tree.map(lambda x: like_varying(jnp.zeros(x.shape, x.dtype), first), shapes)
    return jax.lax.scan(add, start, pieces)[0]


def _noisy(total: Updates, params: Params, deviation: Any, key: Any, expected: Any) -> Updates:
    """(sum + noise) / expected number of examples, in the parameters' dtypes; leaves draw apart."""
    leaves, treedef = jax.tree.flatten(total)
    keys = jax.random.split(key, max(len(leaves), 1))

    def one(g: Array, key: Any, p: Any) -> Array:
        real = real_dtype(g.dtype)
        if jnp.issubdtype(g.dtype, jnp.complexfloating):
            parts = jax.random.normal(key, (2, *g.shape), real)
            noise = jax.lax.complex(parts[0], parts[1])
        else:
            noise = jax.random.normal(key, g.shape, real)
        noisy = (g + noise * jnp.asarray(deviation, real)) / jnp.asarray(expected, real)
        return noisy.astype(jnp.asarray(p).dtype)

    return treedef.unflatten(
        [one(g, k, p) for g, k, p in zip(leaves, keys, jax.tree.leaves(params), strict=True)]
    )
