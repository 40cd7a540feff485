"""The global norm: one number for all leaves, in one pass over them.

How leaves are grouped decides how fast XLA compiles and runs it; the constants below are measured.
"""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._axes import reduction_axes, sum_over_shards
from ._numerics import is_complex, widest
from ._types import Updates
from .tracing.by_platform import by_platform
from .tracing.calls import Opaque, named_call

_NORM_SCALE = 2.0**-64  # squares of anything a float32 holds stay finite after it
_RUN = 16  # arrays that share a traced function; XLA's fusions read no more than some dozens
# Summed as one, arrays of fewer elements compile faster (1,000 of them: by 2 s) and, above 2^14 elements, run
# slower (by up to a tenth of an Adam step). Of larger ones few are in a model.
_SMALL = 2**17


def global_norm(updates: Updates, axis_name: Any = None) -> Float[Array, ""]:
    r"""$\sqrt{\sum_i x_i^2}$ over all leaves, in float32 (float64 when a leaf is), in one pass.

    Where it overflows, a second sum takes over, of values scaled by 2^-64. In which order leaves are
    summed, and with it the last bits, depends on their shapes and on the number of devices.

    Args:
      updates: any tree of arrays; an empty one has norm 0.
      axis_name: mapped axes over which the leaves are sharded, beside those that a surrounding
        `zero(..., axis_name=...)` has announced.
    """
    leaves = [part for x in jax.tree.leaves(updates) if jnp.size(x) for part in _real_parts(x)]
    dtype = widest(*(x.dtype for x in leaves)) if leaves else np.dtype(np.float32)

    def total(runs: list[list[Array]], scale: float, on_cpu: bool = False) -> Array:
        sums = [_sum_of_squares(run, scale, dtype, on_cpu and _side_by_side(run)) for run in runs]
        return functools.reduce(operator.add, sums)

    def at_once(runs: list[list[Array]]) -> Array:
        plain, scaled = sum_over_shards((total(runs, 1.0), total(runs, _NORM_SCALE)), axis_name)
        over = jnp.isinf(plain)
        # one root: of two, that of a sum that vanishes would make every derivative NaN
        return jnp.sqrt(jnp.where(over, scaled, plain)) / jnp.where(over, _NORM_SCALE, 1.0).astype(dtype)

    def in_turn(runs: list[list[Array]]) -> Array:
        """On CPU each sum is a pass of its own: the second is made where it is needed."""
        plain = total(runs, 1.0, on_cpu=True)
        return jax.lax.cond(
            jnp.isinf(plain),
            lambda: jnp.sqrt(total(runs, _NORM_SCALE, on_cpu=True)) / _NORM_SCALE,
            lambda: jnp.sqrt(plain),
        )

    if not leaves:
        return jnp.zeros((), dtype)
    if reduction_axes(axis_name):  # `zero` wants to see the same work whatever the shapes
        return at_once([leaves])
    return by_platform(at_once, {"cpu": in_turn}, _runs(leaves))


def _real_parts(x: Any) -> list[Array]:
    """The arrays whose squares make |x|^2."""
    x = x if isinstance(x, jax.Array) else jnp.asarray(x)
    return [x.real, x.imag] if is_complex(x) else [x]


def _runs(leaves: list[Array]) -> list[list[Array]]:
    """Leaves of one type together, sharding and all, so that they share what is traced."""
    alike: dict[Any, list[Array]] = {}
    for x in leaves:
        alike.setdefault(jax.typeof(x), []).append(x)
    return [xs[n : n + _RUN] for xs in alike.values() for n in range(0, len(xs), _RUN)]


def _side_by_side(run: list[Array]) -> bool:
    """Is a run one sum, on CPU? Of small arrays; none may be sharded."""
    devices = max(jax.device_count(), jax.sharding.get_abstract_mesh().size)
    return run[0].size <= _SMALL and jax.default_backend() == "cpu" and devices == 1


def _squares_summed(run: list[Array], scale: float, dtype: Any, side_by_side: bool) -> Array:
    """The sum of squares of scaled arrays.

    Side by side, arrays of one shape are added before their elements are: to XLA one sum, not many.
    """
    wide = [x.astype(dtype) for x in run]
    if scale != 1:  # behind a barrier: of one element XLA would square the scale, to 0
        factor = jax.lax.optimization_barrier(jnp.asarray(scale, dtype))
        wide = [x * factor for x in wide]
    squares = [jnp.square(x) for x in wide]
    if side_by_side:
        squares = [functools.reduce(operator.add, squares)]
    return functools.reduce(operator.add, [jnp.sum(x) for x in squares])


# a call that `apply` keeps whole: taken apart, the sums of all leaves would be equations of every pass
_MEANING = Opaque("a sum of squares")
_sum_of_squares = named_call(_squares_summed, "sum_of_squares", _MEANING, _MEANING, static_argnums=(1, 2, 3))
