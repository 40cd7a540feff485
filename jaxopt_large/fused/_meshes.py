"""A pass on a mesh: where its arrays lie, and the same pass on what one device has of them."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from .._compat import varying_axes
from .._encoded import BLOCK
from .._partition import devices_along, names_in
from ..passes.passes import Order, Pass
from ..tracing import primitives as table

UNKNOWN = "the layout of its arrays on the mesh is not known; zero or Explicit axes tell it"


@dataclasses.dataclass(frozen=True)
class Placed:
    """How the arrays of a pass are divided.

    Attributes:
      mesh: over which devices.
      spec: of the arrays, an entry for each axis; scales follow.
      after: the sharding that a result has afterwards, where it is another.
    """

    mesh: Any
    spec: tuple[Any, ...]
    after: Mapping[int, Any]

    def spec_of(self, order: Order | None) -> PartitionSpec:
        return PartitionSpec(*(self.spec if order is None else (self.spec[axis] for axis in order)))

    def parts(self) -> tuple[int, ...]:
        """Into how many parts each axis is divided."""
        return tuple(devices_along(names_in(entry), self.mesh) for entry in self.spec)

    def local(self, pass_: Pass) -> Pass:
        """The pass on one device."""
        parts = self.parts()
        types = dict(pass_.types)
        for v, order in pass_.kinds.items():
            counts = parts if order is None else tuple(parts[axis] for axis in order)
            shape = tuple(n // count for n, count in zip(pass_.types[v].shape, counts, strict=True))
            types[v] = jax.ShapeDtypeStruct(shape, pass_.types[v].dtype)
        shape = tuple(n // count for n, count in zip(pass_.shape, parts, strict=True))
        return dataclasses.replace(pass_, shape=shape, types=types)

    def offsets(self, shape: Sequence[int]) -> list[Any]:
        """Where a device's part of an array begins, given the shape of the part."""
        found = []
        for entry, n in zip(self.spec, shape, strict=True):
            index = jnp.zeros((), jnp.int32)
            for name in names_in(entry):
                index = index * self.mesh.shape[name] + jax.lax.axis_index(name)
            found.append(index * n)
        return found


def where_of(pass_: Pass, *, alone: bool = False) -> Placed | str | None:
    """How the arrays of a pass are divided, or why a kernel cannot run on them.

    Args:
      pass_: as traced.
      alone: where nothing tells, are arrays whole on one device?

    Returns:
      None where arrays are whole on one device, or one device's part.
    """
    mesh = jax.sharding.get_abstract_mesh()
    manual = [kind == jax.sharding.AxisType.Manual for kind in mesh.axis_types]
    if any(manual):
        if not all(manual):
            return "shard_map leaves axes of the mesh to the compiler"
        typed = any(varying_axes(pass_.types[v]) for v in pass_.inputs)
        return "shard_map types its arrays; check_vma=False lets kernels run" if typed else None
    found = _placed(pass_)
    if found == UNKNOWN:
        return None if alone or jax.device_count() == 1 else found
    if isinstance(found, Placed) and found.mesh.size == 1:
        return found if jax.sharding.AxisType.Explicit in found.mesh.axis_types else None
    return found


def _placed(pass_: Pass) -> Placed | str:
    """How a pass is divided, told by types and constraints, or why that is not known or of no use."""
    shardings = _known(pass_)
    known = {k: shardings[v] for k, v in pass_.results.items() if v in shardings and pass_.kinds[v] is None}
    if not known:
        return UNKNOWN
    rank = len(pass_.shape)
    ways = [Placed(s.mesh, (*s.spec, *(None,) * (rank - len(s.spec))), known) for s in known.values()]
    made = max(ways, key=lambda p: math.prod(p.parts()))  # state may be divided further than parameters
    parts = made.parts()
    if any(n % count for n, count in zip(pass_.shape, parts, strict=True)):
        return "its axes are not divided evenly"
    if parts[-1] > 1 and pass_.shape[-1] % (BLOCK * parts[-1]):
        return "the mesh divides blocks"
    return made


def _known(pass_: Pass) -> dict[Any, NamedSharding]:
    """The shardings of variables: from their types among Explicit axes, else from constraints around them."""
    found: dict[Any, Any] = {}
    for eqn in pass_.equations:
        if eqn.of.primitive.name in ("sharding_constraint", "reshard"):
            sharding = eqn.of.params.get("sharding", eqn.of.params.get("dst_sharding"))
            if isinstance(sharding, NamedSharding) and _tells(sharding, eqn):
                found[eqn.outputs[0]] = sharding
                found.setdefault(eqn.inputs[0], sharding)
        elif table.known(eqn.of).placed:
            known = [found[a] for a in eqn.inputs if not hasattr(a, "value") and a in found]
            if known:
                found.setdefault(eqn.outputs[0], known[-1])
    for v in pass_.kinds:
        sharding = getattr(pass_.types[v], "sharding", None)
        kinds = getattr(getattr(sharding, "mesh", None), "axis_types", None) or ()
        if kinds and all(kind == jax.sharding.AxisType.Explicit for kind in kinds):
            found[v] = sharding
    return found


def _tells(sharding: NamedSharding, eqn: Any) -> bool:
    """Does a constraint say where an array lies?

    Not all do: some leave axes open, and a reshard to Auto axes changes only how axes are typed.
    """
    typing = eqn.of.primitive.name == "reshard" and jax.sharding.AxisType.Auto in sharding.mesh.axis_types
    return not typing and all(isinstance(entry, None | str | tuple) for entry in sharding.spec)
