"""What one device holds of parameters, gradients, state and activations, before anything is allocated."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from .._errors import Problems, check_rule, message
from .._nodes import Decision, StateNode, bytes_of, nodes_in
from .._numerics import accumulation_dtype
from .._partition import shards_of
from .._paths import leaf_paths
from .._state_rows import NONE, StateRow, state_rows
from .._types import AnyRule, Params, Updates, as_leaves
from ..accumulation import Mode
from ..explanation import explain
from ..microbatches import microbatched_value_and_grad
from ..placement.shardings import abstract_state, check_arrays, gradients_of
from .chips import Chip, chip_of
from .sheet import Plan, PlanRow, Whole
from .step import StepCosts, gradient_costs, kept_for_backward, update_costs

_MOST_WHOLE = 5  # of what is not divided: the largest


def plan(
    rule: AnyRule,
    params: Params,
    mesh: Mesh | AbstractMesh | None = None,
    *,
    chip: str | Chip | None = None,
    accumulate: int = 1,
    accumulation: Mode = "sharded",
    axis_sizes: Mapping[str, int] | None = None,
    loss: Callable[[Params, Any], Any] | None = None,
    batch: Any = None,
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
      loss: (params, batch) -> loss, a mean over the batch's rows. It is traced: with it activations,
        temporaries, operations and what devices send for gradients are in the plan. How arrays inside it are
        divided follows from `params`, `batch` and the constraints that it makes.
      batch: for `loss`: arrays or `jax.ShapeDtypeStruct`s, of all micro-batches together. Those without a
        sharding are divided along their first dimension over the axis of `zero`, else the mesh's first.

    Returns:
      The plan, a tuple of `PlanRow`s. Printed: a table, what is left, how long a step takes at least and why.

    Raises:
      ValueError: the chip is unknown, accumulate < 1, or placement refuses the parameters.
      TypeError: rule is not a rule, a parameter no array, or mesh not a mesh; loss without batch.

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
    The optimizer's step takes 2.3 ms at least, by network over data (memory 0.8 ms).
    <BLANKLINE>
    kind        over  count  in loops  a step      at least
    ----------  ----  -----  --------  ----------  --------
    all-gather  data  1      0         256.00 MiB  2.3 ms
    """
    _check(rule, mesh, accumulate, accumulation)
    work = None
    if loss is not None or batch is not None:
        _check_work(loss, batch, accumulate, axis_sizes)
    if loss is not None:
        mesh = mesh or _mesh_of((params, batch)) or _mesh_of(abstract_state(rule, params))
        work = _work(loss, batch, accumulate, accumulation, mesh)
    return planned(
        rule,
        params,
        mesh,
        chip=chip,
        accumulate=accumulate,
        accumulation=accumulation,
        axis_sizes=axis_sizes,
        work=work,
    )


class Work(NamedTuple):
    """What a model is asked for in a step.

    Attributes:
      gradient: (parameters, batch, axes that divide the batch, shardings or None) -> (loss, gradient).
      batch: shapes, with shardings, or a function of the axes over which it is divided that gives them.
      loss: (parameters, micro-batch) -> loss.
      micro: of one micro-batch, likewise.
    """

    gradient: Callable[[Params, Any, tuple[str, ...], Any], tuple[Any, Updates]]
    batch: Callable[[tuple[str, ...]], Any]
    loss: Callable[[Params, Any], Any]
    micro: Callable[[tuple[str, ...]], Any]


def _work(loss: Callable[..., Any], batch: Any, accumulate: int, accumulation: Mode, mesh: Any) -> Work:
    """The gradient of a loss of one's own."""

    def placed(parts: int, axes: tuple[str, ...]) -> Any:
        def one(x: Any) -> Any:
            shape = (x.shape[0] // parts, *x.shape[1:]) if x.shape else ()
            sharding = getattr(x, "sharding", None)
            if not isinstance(sharding, NamedSharding) and mesh is not None:
                sharding = NamedSharding(mesh, PartitionSpec(axes) if shape else PartitionSpec())
            return jax.ShapeDtypeStruct(shape, x.dtype, sharding=sharding)

        return jax.tree.map(one, batch)

    def gradient(params: Params, batch: Any, axes: tuple[str, ...], shardings: Any) -> tuple[Any, Updates]:
        if accumulate == 1 and accumulation == "sharded":
            return jax.value_and_grad(loss)(params, batch)
        options: dict[str, Any] = {"shardings": shardings}
        if accumulation == "deferred" and axes:
            options = {"mode": accumulation, "mesh": mesh, "axis": axes[0]}
        return microbatched_value_and_grad(loss, accumulate, **options)(params, batch)

    return Work(gradient, functools.partial(placed, 1), loss, functools.partial(placed, accumulate))


def planned(
    rule: AnyRule,
    params: Params,
    mesh: Mesh | AbstractMesh | None,
    *,
    chip: str | Chip | None,
    accumulate: int,
    accumulation: Mode,
    axis_sizes: Mapping[str, int] | None,
    work: Work | None,
) -> Plan:
    """`plan`, of what a model is asked for and of arguments that have been checked."""
    kind = None if chip is None else chip_of("plan", chip)
    placed = _placed(params, mesh)
    if axis_sizes:
        told = explain(rule, placed, axis_sizes=axis_sizes)
        devices = math.prod(axis_sizes.values())
        state = [row._replace(bytes=row.bytes * devices, device_bytes=row.bytes) for row in told.rows]
        gradients, decisions, shapes = placed, list(told), None
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
    mesh = mesh or _mesh_of((placed, shapes))
    step = _Step(rule, placed, shapes, gradients, mesh, work, 0 if kind is None else kind.fast)
    if work is not None and shapes is not None:
        held = sum(r.device_bytes for r in rows if r.part in ("gradients", "accumulators"))
        rows += step.rows(work, held, devices)
    sizes = {} if mesh is None else dict(mesh.shape)
    on_host = sum(
        _device_bytes(x)
        for x in jax.tree.leaves(shapes)
        if getattr(x.sharding, "memory_kind", "") == "pinned_host"
    )
    return Plan(rows, devices, kind, _whole(decisions), sizes, step.costs, offloaded=on_host)


class _Step:
    """The step of a plan, traced when it is asked for."""

    def __init__(
        self,
        rule: AnyRule,
        params: Params,
        state: Any,
        grads: Updates,
        mesh: Any,
        work: Work | None,
        fast: int,
    ):
        self._rule, self._params, self._state, self._grads = rule, params, state, grads
        self._mesh = mesh or AbstractMesh((), ())
        self._work, self._fast = work, fast
        zeroed = [node.layout.axes for node, _, _ in nodes_in(state, StateNode.gradient_shardings)]
        self._axes = zeroed[0] if zeroed else tuple(self._mesh.axis_names[:1])

    @functools.cached_property
    def _gradient(self) -> Any:
        work = self._work
        if work is None or self._state is None:
            return None
        shardings = gradients_of(self._state, self._params)

        def run(params: Params, batch: Any) -> Any:
            return work.gradient(params, batch, self._axes, shardings)

        return gradient_costs(run, self._params, work.batch(self._axes), self._grads, self._mesh, self._fast)

    def rows(self, work: Work, of_gradients: int, devices: int) -> list[PlanRow]:
        """Activations and temporaries; gradients and their sums have rows of their own."""
        kept = kept_for_backward(work.loss, self._params, work.micro(self._axes), self._mesh)
        rest = max(0, self._gradient.alive - of_gradients)
        kept = min(kept, rest)
        update = self.costs().update
        if update is not None:  # when it runs, there are no activations
            rest = max(rest, update.alive)
        return [
            PlanRow("activations", NONE, NONE, kept * devices, kept),
            PlanRow("temporaries", NONE, NONE, (rest - kept) * devices, rest - kept),
        ]

    def costs(self) -> StepCosts:
        """Of gradient and update."""
        if self._state is None:
            return StepCosts(None, None, "it runs in mapped axes")
        return self._costs

    @functools.cached_property
    def _costs(self) -> StepCosts:
        extra = {} if self._work is None else {"value": jax.ShapeDtypeStruct((), "float32")}
        given = self._grads, self._state, self._params, self._mesh, extra, self._fast
        try:
            return StepCosts(self._gradient, update_costs(self._rule, *given))
        except Exception as error:  # what rules raise that need more than gradients has no common class
            return StepCosts(self._gradient, None, str(error).splitlines()[0])


def _check(rule: Any, mesh: Any, accumulate: Any, accumulation: Any) -> None:
    """Raises for arguments that are none."""
    check_rule("plan", rule)
    if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
        wrong = f"accumulate is out of range, got {accumulate!r}"
        raise ValueError(message("plan", wrong, allowed="an integer >= 1"))
    if accumulation not in ("sharded", "deferred"):
        wrong = f"accumulation is unknown, got {accumulation!r}"
        raise ValueError(message("plan", wrong, allowed="'sharded' or 'deferred'"))
    if mesh is not None and not isinstance(mesh, Mesh | AbstractMesh):
        wrong = f"mesh is not a mesh, got {mesh!r}"
        raise TypeError(message("plan", wrong, allowed="jax.make_mesh(...) or an AbstractMesh"))


def _check_work(loss: Any, batch: Any, accumulate: int, axis_sizes: Any) -> None:
    """Raises for a loss and a batch that cannot be planned."""
    if loss is None or batch is None:
        wrong = f"loss and batch belong together, got {loss!r} and {type(batch).__name__}"
        raise TypeError(message("plan", wrong, do="Pass both, or neither"))
    if axis_sizes:
        wrong = "loss and batch are for a mesh, got axis_sizes"
        raise TypeError(message("plan", wrong, do="Leave them out inside mapped axes"))
    problems = Problems("plan")
    for path, x in zip(leaf_paths(batch), jax.tree.leaves(batch), strict=True):
        if not hasattr(x, "dtype") or not hasattr(x, "shape"):
            problems.add(f"a leaf of the batch is not an array, got {x!r}", at=path or "the root")
        elif accumulate > 1 and (not x.shape or x.shape[0] % accumulate):
            allowed = f"a first dimension divisible by accumulate={accumulate}"
            problems.add(
                f"a leaf of the batch has shape {tuple(x.shape)}", at=path or "the root", allowed=allowed
            )
    problems.raise_if_any(TypeError)


def _mesh_of(tree: Any) -> Any:
    """The mesh on which any of its arrays lies."""
    shardings = (getattr(x, "sharding", None) for x in jax.tree.leaves(tree))
    return next((s.mesh for s in shardings if isinstance(s, NamedSharding)), None)


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
