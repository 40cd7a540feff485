"""Which way a pass runs: by the platform that is compiled for, and by where its arrays lie."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from .._compat import constrained
from ..passes import loop as cpu
from ..passes.passes import Pass
from . import _kernel
from ._meshes import Placed, where_of

WAYS = ("auto", "xla", *_kernel.TARGETS)
_PLATFORMS = {"tpu": "tpu", "cuda": "gpu"}  # as JAX names them -> as kernels are named
FEWEST = 2**16  # elements; what is smaller is left to XLA, which launches many of them at once


class Way(NamedTuple):
    """How a pass runs.

    Attributes:
      name: "kernel", "loop" or "xla".
      why: in words.
    """

    name: str
    why: str


def way(pass_: Pass, platform: str, where: Placed | str | None) -> Way:
    """How a pass runs on a platform: "cpu", "gpu" or "tpu".

    Args:
      pass_: the equations.
      platform: what is compiled for.
      where: how its arrays are divided, or why that is not known; None: they are whole, or one's own.
    """
    if not pass_.has_blocks:
        return Way("xla", "no block formats: XLA fuses it")
    if pass_.size < FEWEST:
        return Way("xla", f"{pass_.size} elements, under {FEWEST}: fused with its neighbors")
    if isinstance(where, str):
        return Way("xla", where)
    if platform == "cpu":
        return (
            Way("loop", "parts that stay in cache") if where is None else Way("xla", "a mesh of CPU devices")
        )
    reason = _kernel.why_not(pass_ if where is None else where.local(pass_), platform)
    return Way("xla", reason) if reason else Way("kernel", "one tile after another, in place")


def run(pass_: Pass, aliased: Sequence[int | None], kernels: str) -> Callable[..., Any]:
    """(arrays, scalars, token) -> results, token, for leaves with equal passes: as `passes.loop` has it, but
    token is None before the first loop.
    """
    where = where_of(pass_, alone=kernels in _kernel.TARGETS) if pass_.has_blocks else None

    def each(one: Callable[..., list[Any]]) -> Callable[..., Any]:
        """One leaf after another."""
        one = jax.jit(one)  # traced once for all

        def call(arrays: Any, scalars: Any, token: Any) -> tuple[list[list[Any]], Any]:
            numbers = [[x[k] if x.ndim else x for x in scalars] for k in range(len(arrays))]
            return [one(xs, own) for xs, own in zip(arrays, numbers, strict=True)], token

        return call

    def kernel(target: str) -> Callable[..., Any]:
        def one(arrays: list[Any], scalars: list[Any]) -> list[Any]:
            if isinstance(where, Placed):
                return _mapped(pass_, where, aliased, arrays, scalars, target)
            return _kernel.kernel(pass_, aliased, arrays, scalars, target)

        return each(one)

    whole = each(pass_.whole)

    def loop(arrays: Any, scalars: Any, token: Any) -> tuple[list[list[Any]], Any]:
        return cpu.loop(pass_, aliased, arrays, scalars, token)

    def leaf(arrays: Any, scalars: Any, token: Any) -> tuple[list[list[Any]], Any]:
        if kernels in _kernel.TARGETS and pass_.has_blocks and not isinstance(where, str):
            local = pass_ if where is None else where.local(pass_)
            return (whole if _kernel.why_not(local, kernels) else kernel(kernels))(arrays, scalars, token)
        if kernels != "auto":
            return whole(arrays, scalars, token)
        ways: dict[str, Any] = {
            platform: kernel(target)
            for platform, target in _PLATFORMS.items()
            if way(pass_, target, where).name == "kernel"
        }
        if way(pass_, "cpu", where).name == "loop":
            token = (
                cpu.zero_of(arrays[0], [x[0] if x.ndim else x for x in scalars]) if token is None else token
            )
            ways["cpu"] = loop
        if not ways:
            return whole(arrays, scalars, token)
        return jax.lax.platform_dependent(arrays, scalars, token, default=whole, **ways)

    return leaf


def _mapped(
    pass_: Pass, where: Placed, aliased: Sequence[int | None], arrays: Any, scalars: Any, target: str
) -> list[Any]:
    """The kernel on each device's part."""
    local = where.local(pass_)

    def own(arrays: list[Any], scalars: list[Any]) -> list[Any]:
        return _kernel.kernel(local, aliased, arrays, scalars, target, offsets=where.offsets(local.shape))

    specs = [where.spec_of(pass_.kinds[v]) for v in pass_.inputs]
    out_specs = [where.spec_of(pass_.kinds[v]) for v in pass_.results.values()]
    whole = jax.sharding.PartitionSpec()
    shardings = [jax.sharding.NamedSharding(where.mesh, spec) for spec in specs]
    arrays = [constrained(x, s) for x, s in zip(arrays, shardings, strict=True)]
    run = jax.shard_map(
        own, mesh=where.mesh, in_specs=(specs, [whole] * len(scalars)), out_specs=out_specs, check_vma=False
    )
    made = run(arrays, scalars)
    return [
        constrained(x, where.after[k]) if k in where.after else x
        for k, x in zip(pass_.results, made, strict=True)
    ]
