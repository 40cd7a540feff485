"""What one device holds of parameters, gradients and state, before anything is allocated."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from .._errors import check_rule, message
from .._nodes import Decision, StateNode, bytes_of, nodes_in
from .._numerics import accumulation_dtype
from .._partition import shards_of
from .._state_rows import NONE, StateRow, state_rows
from .._tables import Table, fields_of, size, table
from .._types import AnyRule, Params, Updates, as_leaves
from ..accumulation import Mode
from ..explanation import explain
from ..placement.shardings import abstract_state, check_arrays, gradients_of
from .chips import Chip, chip_of

_MOST_WHOLE = 5  # of what is not divided: the largest


class PlanRow(NamedTuple):
    """Arrays of one kind.

    Attributes:
      part: "parameters", "gradients", "accumulators" or "state".
      field: of the state, "adam mu", and "counters" for the numbers that all parameters share; "-" of the
        others.
      dtype: or the name of the format, whose scales count; "-" of several.
      bytes: of all devices together, each array counted once.
      device_bytes: on the device that has most.
    """

    part: str
    field: str
    dtype: str
    bytes: int
    device_bytes: int


class Whole(NamedTuple):
    """The state of a parameter that each device has all of.

    Attributes:
      path: the parameter's.
      bytes: on each device.
      reason: why.
    """

    path: str
    bytes: int
    reason: str


class Plan(Table):
    """What one device holds between and during steps: a `PlanRow` for each kind of arrays.

    Activations and the step's own temporaries are not in it.

    Attributes:
      devices: how many there are.
      chip: what they are; None where that was not said.
      whole: the largest parts of the state that `zero` does not divide, and why.
    """

    columns = PlanRow._fields
    devices: int
    chip: Chip | None
    whole: tuple[Whole, ...]

    def __new__(  # noqa: D102
        cls, rows: Any, devices: int = 1, chip: Chip | None = None, whole: tuple[Whole, ...] = ()
    ) -> "Plan":
        made = super().__new__(cls, rows)
        made.devices, made.chip, made.whole = devices, chip, whole
        return made

    @property
    def device_bytes(self) -> int:
        """Of one device, all rows together."""
        return sum(row.device_bytes for row in self)

    @property
    def headroom(self) -> int | None:
        """What the chip has left for activations and temporaries; negative where it is too small."""
        return None if self.chip is None else self.chip.memory - self.device_bytes

    @property
    def fits(self) -> bool:
        """Has the chip room for it? Without a chip, yes."""
        return self.headroom is None or self.headroom >= 0

    def part(self, name: str) -> int:
        """Bytes of one part on one device."""
        return sum(row.device_bytes for row in self if row.part == name)

    def cell(self, row: PlanRow, column: str) -> str:
        """What is printed of a row in a column."""
        value = getattr(row, column)
        return size(value) if column in ("bytes", "device_bytes") else str(value)

    def __str__(self) -> str:
        entries = [[self.cell(row, column) for column in self.columns] for row in self]
        entries.append(["all", NONE, NONE, size(sum(r.bytes for r in self)), size(self.device_bytes)])
        head = ("part", "field", "dtype", "all devices", "one device")
        lines = [table(head, entries), "", *self._verdict()]
        if self.whole:
            rows = [(w.path, size(w.bytes), w.reason) for w in self.whole]
            lines += ["", table(("not divided", "one device", "reason"), rows)]
        return "\n".join(lines)

    def _verdict(self) -> list[str]:
        count = f"{self.devices:,} device{'s' if self.devices != 1 else ''}"
        if self.chip is None or self.headroom is None:
            return [f"{count}: {size(self.device_bytes)} each, without activations."]
        of = f"{count}, {self.chip.name} of {size(self.chip.memory)}"
        if not self.fits:
            return [f"{of}: does not fit, by {size(-self.headroom)} each."]
        return [f"{of}: {size(self.headroom)} left for activations."]

    def to_json(self) -> str:
        """Rows, what is not divided, and the sums, as JSON."""
        chip = None if self.chip is None else self.chip._asdict()
        sums = {"device_bytes": self.device_bytes, "headroom": self.headroom, "fits": self.fits}
        rows, whole = [fields_of(r) for r in self], [fields_of(w) for w in self.whole]
        found = {"rows": rows, "not_divided": whole, "devices": self.devices, "chip": chip}
        return json.dumps(found | sums, indent=1)


def plan(
    rule: AnyRule,
    params: Params,
    mesh: Mesh | AbstractMesh | None = None,
    *,
    chip: str | Chip | None = None,
    accumulate: int = 1,
    accumulation: Mode = "sharded",
    axis_sizes: Mapping[str, int] | None = None,
) -> Plan:
    """What each device will hold of parameters, gradients and state; nothing is allocated.

    Gradients count as `zero` divides them where one `zero` holds all parameters, else as the parameters are.

    Args:
      rule: any rule, with its wrappers.
      params: arrays, or `jax.ShapeDtypeStruct`s; those without a sharding are whole on every device.
      mesh: the devices; by default those of the parameters' shardings, or of `zero`.
      chip: a name in `jl.plan.CHIPS`, such as "v5e", against whose memory the sum is held.
      accumulate: micro-batches; of more than one the gradients' sums are kept in float32.
      accumulation: "deferred" where gradients are reduced once: they and their sums are then as the
        parameters are.
      axis_sizes: for `zero(..., axis_name=...)`: mapped axis -> number of devices, each of which holds whole
        parameters and gradients.

    Returns:
      The plan, a tuple of `PlanRow`s: printed, a table and what is left.

    Raises:
      ValueError: the chip is unknown, accumulate < 1, or placement refuses the parameters.
      TypeError: rule is not a rule, a parameter no array, or mesh not a mesh.

    >>> mesh = jax.sharding.AbstractMesh((8,), ("data",))
    >>> params = {"w": jax.ShapeDtypeStruct((8192, 8192), jnp.float32)}
    >>> rule = jl.zero(jl.stored(jl.adam(1e-3), nu=jl.int8()), mesh, "data")
    >>> print(jl.plan(rule, params, mesh, chip="v5e"))
    part        field     dtype    all devices  one device
    ----------  --------  -------  -----------  ----------
    parameters  -         float32  256.00 MiB   256.00 MiB
    gradients   -         float32  256.00 MiB   32.00 MiB
    state       counters  -        12 B         12 B
    state       adam mu   float32  256.00 MiB   32.00 MiB
    state       adam nu   int8     66.00 MiB    8.25 MiB
    all         -         -        834.00 MiB   328.25 MiB
    <BLANKLINE>
    8 devices, v5e of 15.75 GiB: 15.43 GiB left for activations.
    """
    check_rule("plan", rule)
    if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
        wrong = f"accumulate is out of range, got {accumulate!r}"
        raise ValueError(message("plan", wrong, allowed="an integer >= 1"))
    if mesh is not None and not isinstance(mesh, Mesh | AbstractMesh):
        wrong = f"mesh is not a mesh, got {mesh!r}"
        raise TypeError(message("plan", wrong, allowed="jax.make_mesh(...) or an AbstractMesh"))
    kind = None if chip is None else chip_of("plan", chip)
    placed = _placed(params, mesh)
    if axis_sizes:
        told = explain(rule, placed, axis_sizes=axis_sizes)
        devices = math.prod(axis_sizes.values())
        state = [row._replace(bytes=row.bytes * devices, device_bytes=row.bytes) for row in told.rows]
        gradients, decisions = placed, list(told)
    else:
        shapes = abstract_state(rule, placed, mesh)
        on_device = [_device_bytes(x) for x in jax.tree.leaves(shapes)]
        state = state_rows(shapes, placed, on_device=on_device)
        nodes = [node for node, _, _ in nodes_in(shapes, StateNode.decisions)]
        decisions = [made for node in nodes for made in node.decisions(placed, 1)]
        devices = _devices(mesh, (placed, shapes))
        gradients = placed if accumulation == "deferred" else _divided(shapes, placed)
    sums = [] if accumulate == 1 else _of_leaves("accumulators", _accumulators(gradients))
    rows = [*_of_leaves("parameters", placed), *_of_leaves("gradients", gradients), *sums, *_of_state(state)]
    return Plan(rows, devices, kind, _whole(decisions))


def _placed(params: Params, mesh: Any) -> Params:
    """The parameters' shapes with shardings."""
    everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())

    def one(x: Any) -> Any:
        sharding = getattr(x, "sharding", None)
        on_mesh = sharding if isinstance(sharding, NamedSharding) else everywhere or sharding
        dtype = jax.dtypes.canonicalize_dtype(x.dtype)
        return jax.ShapeDtypeStruct(x.shape, dtype, sharding=on_mesh)

    check_arrays("plan", params)
    return jax.tree.map(one, as_leaves(params))


def _divided(state: Any, params: Params) -> Params:
    """Gradients as `zero` divides them, else as the parameters are."""
    shardings = gradients_of(state, params)
    if shardings is None:
        return params
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, shardings)


def _accumulators(gradients: Updates) -> Updates:
    def wide(x: Any) -> Any:
        return jax.ShapeDtypeStruct(x.shape, accumulation_dtype(x.dtype), sharding=x.sharding)

    return jax.tree.map(wide, gradients)


def _of_leaves(part: str, leaves: Any) -> list[PlanRow]:
    """A row for each dtype."""
    sums: dict[str, list[int]] = {}
    for x in jax.tree.leaves(leaves):
        total = sums.setdefault(str(x.dtype), [0, 0])
        total[0], total[1] = total[0] + bytes_of(x), total[1] + _device_bytes(x)
    return [PlanRow(part, NONE, dtype, *total) for dtype, total in sums.items()]


def _of_state(rows: Iterable[StateRow]) -> list[PlanRow]:
    """A row for each field and dtype."""
    sums: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        if row.field == NONE and not row.bytes:
            continue
        is_counter = row.path == NONE and row.shape == ()
        key = ("counters", NONE) if is_counter else (f"{row.rule} {row.field}", row.dtype)
        total = sums.setdefault(key, [0, 0])
        total[0], total[1] = total[0] + row.bytes, total[1] + row.device_bytes
    return [PlanRow("state", field, dtype, *total) for (field, dtype), total in sums.items()]


def _device_bytes(x: Any) -> int:
    """Of one device's part, padding included where its length does not divide."""
    if not isinstance(x.sharding, NamedSharding):
        return bytes_of(x)
    shards = (shards_of(x.sharding.spec, dim, x.sharding.mesh) for dim in range(x.ndim))
    share = tuple(-(-size // count) for size, count in zip(x.shape, shards, strict=True))
    return bytes_of(jax.ShapeDtypeStruct(share, x.dtype))


def _devices(mesh: Any, placed: Any) -> int:
    if mesh is not None:
        return math.prod(mesh.shape.values())
    return max((getattr(x.sharding, "num_devices", 1) for x in jax.tree.leaves(placed)), default=1)


def _whole(decisions: Iterable[Decision]) -> tuple[Whole, ...]:
    """What zero leaves on every device, the largest first."""
    found = [
        Whole(row.path, row.bytes, row.reason)
        for row in decisions
        if row.wrapper == "zero" and row.where == "whole" and row.bytes
    ]
    return tuple(sorted(found, key=lambda w: -w.bytes)[:_MOST_WHOLE])
