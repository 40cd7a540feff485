"""The step of a configuration, compiled for TPUs that are not there, beside what its plan says."""

import importlib.util
import math
import os
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from .._errors import message
from .._tables import Table, size
from ..config import Config, build
from ..gradient_norm import watched
from ..hlo.collectives import Collective, Collectives
from ..models import make_model
from ..placement.shardings import abstract_state
from ..plan import Plan, collectives
from ._errors import RunError
from .execution import JitExecution
from .planning import abstract_batch

_TOPOLOGIES = {  # devices -> topology, as libtpu names them
    "v4": "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16",
    "v5e": "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16",
    "v5p": "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16",
    "v6e": "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16",
    "tpu7x": "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16",
}
_CORES = {"tpu7x": 2}  # devices of a chip
# a sum of which each device keeps a part can be either of two, as can an exchange of parts
_EITHER = {
    "gathers": ("all-gather",),
    "reductions": ("reduce-scatter", "all-reduce"),
    "exchanges": ("all-to-all", "collective-permute"),
}
_PRODUCT = "dot_general"  # permutes that have a product's name add up its parts while it runs


class Compared(NamedTuple):
    """One quantity as it is planned and as the compiler has it.

    Attributes:
      what: "arguments", "peak", a kind of collectives, or kinds that a compiler can take for each other.
      planned: bytes on one device; of collectives, in one step.
      compiled: likewise.
      where: of collectives, how many arrays they send as planned and as compiled; of a kind, how many
        there are in the compiled step, and how many of them in loops.
      why: where the two part, why they do.
    """

    what: str
    planned: int
    compiled: int
    where: str
    why: str


class Comparison(Table):
    """What is planned beside what is compiled."""

    columns = ("what", "planned", "compiled", "ratio", "where", "why")
    skips_empty = True

    def cell(self, row: Compared, column: str) -> str:
        """What is printed of a row in a column."""
        if column in ("planned", "compiled"):
            return size(getattr(row, column))
        if column == "ratio":
            return f"{row.compiled / row.planned:.2f}" if row.planned else ""
        return str(getattr(row, column))

    def of(self, what: str) -> Compared:
        """The row of a quantity."""
        return next(row for row in self if row.what == what)


def topology_of(chip: str, devices: int) -> str:
    """The topology of so many devices, "v5e:4x4".

    Raises:
      ValueError: the chip is no TPU, or has no topology of that size.
    """
    known = {k.lower(): k for k in _TOPOLOGIES}
    name = known.get(chip.lower())
    if name is None:
        wrong = f"--compile is for TPUs, got {chip!r}"
        raise ValueError(message("plan", wrong, allowed=", ".join(_TOPOLOGIES)))
    cores = _CORES.get(name, 1)
    shapes = {cores * math.prod(map(int, shape.split("x"))): shape for shape in _TOPOLOGIES[name].split()}
    if devices not in shapes:
        wrong = f"{name} has no topology of {devices} devices"
        raise ValueError(message("plan", wrong, allowed=", ".join(map(str, shapes))))
    return f"{name}:{shapes[devices]}"


def compiled_step(config: Config, topology: str) -> Any:
    """The step of a configuration, compiled for a topology: as `jaxopt-large train` would run it.

    Raises:
      RunError: libtpu is not installed, the model has no loss, or placement is pmap's.
      jax.errors.JaxRuntimeError: the compiler refuses it.
    """
    if importlib.util.find_spec("libtpu") is None:
        wrong = "--compile needs libtpu, the TPU compiler, which is not installed"
        do = "Install the extra `tpu-compile` from where jaxopt_large came: pip install '.[tpu-compile]'"
        raise RunError(message("plan", wrong, allowed="it needs no TPU", do=do))
    if config.placement.parallel == "pmap":
        wrong = "--compile is for parallel: jit"
        raise RunError(message("plan", wrong, do="pmap compiles for the devices that are there"))
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU to ask
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    sizes = config.placement.mesh
    devices = topologies.get_topology_desc(topology, platform="tpu").devices
    mesh = Mesh(
        np.array(devices[: config.placement.devices]).reshape(*sizes.values()),
        tuple(sizes),
        axis_types=(AxisType.Auto,) * len(sizes),
    )
    rule = build(config, mesh=mesh, around=watched)
    run = JitExecution(config, make_model(config.model), rule, mesh)
    state, whole = abstract_state(rule, run.params), NamedSharding(mesh, PartitionSpec())
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or whole), state
    )
    shardings = jax.tree.map(lambda x: x.sharding, state)
    return run.jitted(shardings).lower(run.params, state, abstract_batch(config, mesh)).compile()


def compared(plan: Plan, step: Any) -> Comparison:
    """A plan beside the compiled step that it is of."""
    memory, found = step.memory_analysis(), collectives(step)
    held = plan.part("parameters") + plan.part("state")
    rows = [
        Compared("arguments", held, memory.argument_size_in_bytes, "", "the batch is an argument too"),
        Compared("peak", plan.device_bytes, memory.peak_memory_in_bytes, "", ""),
    ]
    loops = found.inside_loops()
    for name, kinds in _EITHER.items():
        some = [k for k in kinds if plan.collectives.bytes(k) or found.bytes(k)]
        for kind in some:
            planned, compiled = plan.collectives.bytes(kind), found.bytes(kind)
            where = f"{found.count(kind)}, {loops.count(kind)} in loops"
            rows.append(Compared(kind, planned, compiled, where, _why(kind, planned, compiled)))
        ours = Collectives(c for c in found if _family(c) == name)
        if len(some) > 1:
            count = sum(plan.collectives.count(kind) for kind in kinds)
            where = f"{count} planned, {sum(c.arrays for c in ours)} compiled"
            rows.append(Compared(name, sum(map(plan.collectives.bytes, kinds)), ours.bytes(), where, ""))
    both = plan.collectives.bytes(), found.bytes()
    rows.append(Compared("all collectives", *both, "", ""))
    return Comparison(rows)


def _family(c: Collective) -> str:
    """What a collective does, whatever it is."""
    if c.kind == "collective-permute" and _PRODUCT in c.name:
        return "reductions"
    return next((name for name, kinds in _EITHER.items() if c.kind in kinds), "")


def _why(kind: str, planned: int, compiled: int) -> str:
    """In words, where planned and compiled bytes part by more than a tenth."""
    if abs(compiled - planned) <= 0.1 * max(planned, compiled) or max(planned, compiled) < 2**20:
        return ""
    if kind == "collective-permute":
        return "exchanges, and products that run while an operand is sent part by part"
    if kind == "reduce-scatter" and compiled < planned:
        return "as all-reduces of which each device keeps its part, or as permutes"
    if kind == "all-reduce" and compiled > planned:
        return "in the place of reduce-scatters"
    if kind == "all-gather" and compiled < planned:
        return "as permutes, or seen to be wanted twice"
    return "the compiler's choice"
