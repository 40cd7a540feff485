"""What `apply` does with each parameter, and what it costs in bytes, before anything is allocated."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._errors import message
from .._paths import leaf_paths
from .._tables import Table
from .._types import AnyRule, Params
from ..passes.passes import Pass
from ..placement.shardings import abstract_init
from ._dispatch import chosen
from ._meshes import Placed, where_of
from ._step import Step, step_of
from .targets import TARGETS

PLATFORMS = ("cpu", "gpu", "tpu")
_READ_APART = 8  # bytes of an element to encode: XLA writes it in float32, reads it for maxima and for codes


class LeafPass(NamedTuple):
    """How one parameter, with its state, goes through a step.

    Attributes:
      path: the parameter's.
      shape: of it.
      way: "kernel", "loop" or "xla".
      why: that way.
      read: bytes, on one device.
      written: bytes.
      floor: bytes, if gradient, parameter and state are read once and what is new is written once.
      ratio: of what is moved to the floor; a kernel's counts the padding of a TPU's tiles, XLA's is an
        estimate where there are blocks.
    """

    path: str
    shape: tuple[int, ...]
    way: str
    why: str
    read: int
    written: int
    floor: int
    ratio: float


class ApplyExplanation(Table):
    """One `LeafPass` per parameter; printed, a table."""

    columns = LeafPass._fields

    def cell(self, row: LeafPass, column: str) -> str:
        """What is printed of a row in a column."""
        return f"{row.ratio:.2f}" if column == "ratio" else super().cell(row, column)


def explain_apply(
    rule: AnyRule, params: Params, *, platform: str | None = None, **extra: Any
) -> ApplyExplanation:
    """For each parameter: kernel, loop or XLA, why, and the bytes that the step moves.

    The step is traced, with gradients in the parameters' dtypes; nothing is allocated.

    Args:
      rule: the rule that `apply` is to run, outside of mapped axes.
      params: arrays, or `jax.ShapeDtypeStruct`s.
      platform: "cpu", "gpu" or "tpu"; by default JAX's own, on its devices. Of a platform that is named,
        one device is meant where nothing tells how arrays are divided.
      **extra: what else `update` takes.

    Returns:
      One row per parameter.

    Raises:
      ValueError: platform is none of the three.

    >>> rule = jl.stored(jl.adamw(1e-3), mu=jl.int8(), nu=jl.int8())
    >>> params = {"b": jnp.ones(512), "w": jnp.ones((512, 512))}
    >>> print(jl.explain_apply(rule, params, platform="tpu"))
    path  shape       way     why                               read       written    floor      ratio
    ----  ----------  ------  --------------------------------  ---------  ---------  ---------  -----
    b     (512,)      xla     no block formats: XLA fuses it    8,192      6,144      14,336     1.00
    w     (512, 512)  kernel  one tile after another, in place  2,654,208  1,605,632  4,227,072  1.01
    """
    alone = platform is not None
    platform = jax.default_backend() if platform is None else platform
    if platform not in PLATFORMS:
        raise ValueError(
            message("explain_apply", f"platform is unknown, got {platform!r}", allowed=f"one of {PLATFORMS}")
        )
    state, _ = abstract_init(rule, params)
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(jnp.shape(p), jnp.result_type(p)), params)
    step = Step.taken(step_of(rule, extra), (shapes, state, shapes))
    owners = {} if step is None else {k: p for p in step.split.passes for k in p.results}
    leaves = zip(leaf_paths(params), jax.tree.leaves(shapes), strict=True)
    return ApplyExplanation(
        _row(path, leaf, owners[i], platform, alone) if i in owners else _not_counted(path, leaf, step)
        for i, (path, leaf) in enumerate(leaves)
    )


def _not_counted(path: str, leaf: Any, step: Step | None) -> LeafPass:
    if step is None:
        why = "the step calls back, or changes the state's structure"
    else:
        why = "its step is not element by element" if leaf.shape else "a number"
    return LeafPass(path, tuple(leaf.shape), "xla", f"{why}: bytes are not counted", 0, 0, 0, float("nan"))


def _row(path: str, leaf: Any, pass_: Pass, platform: str, alone: bool) -> LeafPass:
    shape = tuple(leaf.shape)
    where = where_of(pass_, alone=alone)
    name, why = chosen(pass_, platform, where)
    if pass_.repeats:
        why += "; norms and the like of what it computes come before, and are not counted"
    if pass_.precomputed:
        why += f"; XLA makes {len(pass_.precomputed)} arrays for it before, which is not counted"
    local = where.local(pass_) if isinstance(where, Placed) else pass_
    read, written = (sum(map(local.bytes_of, vs)) for vs in (local.inputs, local.results.values()))
    floor = read + written - sum(map(local.bytes_of, local.precomputed))
    if name == "kernel":
        read, written = TARGETS[platform].moved(local)
    elif name == "xla" and pass_.has_blocks:
        encoded = sum(pass_.kinds[v] is not None for v in pass_.results.values())
        read, written = read + _READ_APART * encoded * local.size, written + 4 * encoded * local.size
    return LeafPass(path, shape, name, why, read, written, floor, (read + written) / floor)
