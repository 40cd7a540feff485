"""Which way a pass runs: by the platform that is compiled for, and by where its arrays lie."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._compat import constrained
from ..passes import loop as cpu
from ..passes.layers import layer_by_layer
from ..passes.loop import Hold
from ..passes.pass_call import PassCall, Way, each
from ..passes.passes import Pass
from . import _kernel
from ._meshes import Placed, where_of
from .targets import TARGETS

WAYS = ("auto", "xla", *TARGETS)
FEWEST = 2**16  # elements; what is smaller is left to XLA, which launches many of them at once
_BY_LAYERS = (
    2**24
)  # elements on one device of a stack that no kernel takes: XLA keeps several copies in float32


class Chosen(NamedTuple):
    """How a pass runs.

    Attributes:
      name: "kernel", "loop" or "xla".
      why: in words.
    """

    name: str
    why: str


def chosen(pass_: Pass, platform: str, where: Placed | str | None) -> Chosen:
    """How a pass runs on a platform: "cpu", "gpu" or "tpu".

    Args:
      pass_: the equations.
      platform: what is compiled for.
      where: how its arrays are divided, or why that is not known; None: they are whole, or one's own.
    """
    reason = why_whole(pass_, where)
    if reason is not None:
        return Chosen("xla", reason)
    if platform == "cpu":
        if where is None:
            return Chosen("loop", "windows that stay in cache")
        return Chosen("xla", "a mesh of CPU devices")
    reason = _why_no_kernel(pass_, where, platform)
    return Chosen("xla", reason) if reason else Chosen("kernel", "one tile after another, in place")


def why_whole(pass_: Pass, where: Placed | str | None) -> str | None:
    """Why XLA runs a pass on every platform; None: it does not."""
    if not pass_.has_blocks:
        return "no block formats: XLA fuses it"
    if pass_.size < FEWEST:
        return f"{pass_.size} elements, under {FEWEST}: fused with its neighbors"
    return where if isinstance(where, str) else None


def _why_no_kernel(pass_: Pass, where: Placed | str | None, target: str) -> str | None:
    return _kernel.why_not(where.local(pass_) if isinstance(where, Placed) else pass_, TARGETS[target])


def call(pass_: Pass, holds: tuple[Hold, ...], kernels: str) -> PassCall:
    """A pass on leaves with equal passes, with the ways that are asked for."""
    where = where_of(pass_, alone=kernels in TARGETS) if pass_.has_blocks else None
    whole = each(pass_.whole)

    def kernel(target: str) -> Way:
        def one(arrays: list[Any], scalars: list[Any]) -> list[Any]:
            local = where.local(pass_) if isinstance(where, Placed) else pass_
            if not _why_no_kernel(pass_, where, target):
                run = functools.partial(_kernel.kernel, target=TARGETS[target])
            elif _is_tall(pass_, local):
                run = _by_layers
            else:
                return pass_.whole(arrays, scalars)
            if isinstance(where, Placed):
                return _mapped(pass_, where, holds, arrays, scalars, run)
            return run(pass_, holds, arrays, scalars)

        return each(one)

    def loop(arrays: Any, scalars: Any, token: Any) -> tuple[list[list[Any]], Any]:
        return cpu.loop(pass_, holds, arrays, scalars, token)

    if kernels in TARGETS:
        runs = pass_.has_blocks and not isinstance(where, str)
        return PassCall(kernel(kernels) if runs else whole, {})
    if kernels != "auto" or why_whole(pass_, where) is not None:
        return PassCall(whole, {})
    ways = {target.platform: kernel(name) for name, target in TARGETS.items() if target.platform}
    return PassCall(whole, ways | ({"cpu": loop} if where is None else {}))


def _is_tall(pass_: Pass, local: Pass) -> bool:
    """Is it a large stack, of all layers of which a device has a part? By its own size, on every mesh."""
    layers = pass_.shape[0]
    tall = len(pass_.shape) > 2 and local.shape[0] == layers > 1 and pass_.size >= _BY_LAYERS
    return tall and pass_.size // layers >= FEWEST


def _by_layers(
    pass_: Pass, holds: Sequence[Hold], arrays: Any, scalars: Any, *, offsets: Sequence[Any] | None = None
) -> list[Any]:
    bases = tuple(offsets or (jnp.int32(0),) * len(pass_.shape))
    return layer_by_layer(pass_, holds, arrays, scalars, bases=bases)


def _mapped(
    pass_: Pass,
    where: Placed,
    holds: Sequence[Hold],
    arrays: Any,
    scalars: Any,
    run: Callable[..., list[Any]],
) -> list[Any]:
    """A way to run a pass, on each device's part."""
    local = where.local(pass_)

    def own(arrays: list[Any], scalars: list[Any]) -> list[Any]:
        return run(local, holds, arrays, scalars, offsets=where.offsets(local.shape))

    specs = [where.spec_of(pass_.kinds[v]) for v in pass_.inputs]
    out_specs = [where.spec_of(pass_.kinds[v]) for v in pass_.results.values()]
    whole = jax.sharding.PartitionSpec()
    shardings = [jax.sharding.NamedSharding(where.mesh, spec) for spec in specs]
    arrays = [constrained(x, s) for x, s in zip(arrays, shardings, strict=True)]
    mapped = jax.shard_map(
        own, mesh=where.mesh, in_specs=(specs, [whole] * len(scalars)), out_specs=out_specs, check_vma=False
    )
    made = mapped(arrays, scalars)
    return [
        constrained(x, where.after[k]) if k in where.after else x
        for k, x in zip(pass_.results, made, strict=True)
    ]
