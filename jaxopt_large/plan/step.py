"""What a step does, before it runs: what its trace costs on the mesh."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from .._nodes import bits_of
from .._order import planning
from .._partition import entries
from .._types import AnyRule, Params, State, Updates
from ..fused.apply import apply
from ..tracing.costs import Costs, costs_of
from ..tracing.layouts import Dims, local_elements


class StepCosts(NamedTuple):
    """Of one step, on one device.

    Attributes:
      gradient: of loss and gradient; None without a model.
      update: of the rule and new parameters; None where it cannot be traced, and then `why` says why.
      why: in words.
    """

    gradient: Costs | None = None
    update: Costs | None = None
    why: str = ""

    @property
    def known(self) -> list[Costs]:
        """Those that there are."""
        return [x for x in (self.gradient, self.update) if x is not None]


def gradient_costs(
    gradient: Callable[[Params, Any], tuple[Any, Updates]],
    params: Params,
    batch: Any,
    grads: Updates,
    mesh: Any,
    fast: int = 0,
) -> Costs:
    """What loss and gradient cost.

    Args:
      gradient: (parameters, batch) -> (loss, gradient).
      params: shapes with shardings.
      batch: likewise.
      grads: likewise: how gradients are divided in the end.
      mesh: the mesh.
      fast: bytes of a device's faster memory.
    """
    closed = jax.make_jaxpr(gradient)(params, batch)
    rest = len(closed.out_avals) - len(jax.tree.leaves(grads))
    wanted = [None] * rest + _dims(grads)
    sizes, scatters = dict(mesh.shape), _scatters(mesh)
    return costs_of(closed, _dims((params, batch)), wanted, sizes, scatters=scatters, fast=fast)


def update_costs(
    rule: AnyRule,
    grads: Updates,
    state: State,
    params: Params,
    mesh: Any,
    extra: dict[str, Any],
    fast: int = 0,
) -> Costs:
    """What the rule and the new parameters cost, which are made in the place of the old."""

    def step(params: Params, state: State, grads: Updates, extra: dict[str, Any]) -> tuple[Params, State]:
        return apply(rule, grads, state, params, kernels="xla", **extra)

    with planning():
        closed = jax.make_jaxpr(step)(params, state, grads, extra)
    given = _dims((params, state, grads, extra))
    return costs_of(
        closed,
        given,
        _dims((params, state)),
        dict(mesh.shape),
        scatters=_scatters(mesh),
        fast=fast,
        donated=True,
    )


def _scatters(mesh: Any) -> bool:
    """Has the compiler for a mesh reduce-scatters? That of devices that are not there has."""
    return not isinstance(mesh, Mesh) or mesh.devices.flat[0].platform != "cpu"


def _dims(tree: Any) -> list[Dims]:
    """How each array is divided."""
    specs = [(getattr(getattr(x, "sharding", None), "spec", None), x.ndim) for x in jax.tree.leaves(tree)]
    return [tuple(entries(spec, rank)) for spec, rank in specs]


def kept_for_backward(loss: Callable[[Params, Any], Any], params: Params, batch: Any, mesh: Any) -> int:
    """Bytes on one device of what the forward pass keeps for the backward pass, parameters not counted."""

    def forward(params: Params, batch: Any) -> list[Any]:
        return jax.tree.leaves(jax.vjp(lambda params: loss(params, batch), params)[1])

    closed = jax.make_jaxpr(forward)(params, batch)
    results = closed.jaxpr.outvars
    made = costs_of(closed, _dims((params, batch)), [None] * len(results), dict(mesh.shape)).results
    sizes = dict(mesh.shape)
    given, seen, total = {*closed.jaxpr.invars, *closed.jaxpr.constvars}, set(), 0
    for v, layout in zip(results, made, strict=True):
        if hasattr(v, "val") or v in given or v in seen or layout.free:
            continue
        seen.add(v)
        total += local_elements(v.aval.shape, layout.dims, sizes) * bits_of(v.aval) // 8
    return total
