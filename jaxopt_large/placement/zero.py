"""ZeRO-1: each device keeps its share of the optimizer state (Rajbhandari et al. 2020)."""

from collections.abc import Mapping
from typing import Any

from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from .._errors import Problems, check_rule, message
from .._types import AnyRule, Rule
from ._jit import zero_in_jit
from ._layout_jit import Options, checked_mesh
from ._mapped import zero_in_mapped_axis
from ._specs import SMALL


def zero(
    rule: AnyRule,
    mesh: Mesh | AbstractMesh | None = None,
    axis: Any = None,
    *,
    axis_name: str | None = None,
    layers: str | None = None,
    min_bytes: int = SMALL,
    specs: Mapping[str, PartitionSpec] | None = None,
) -> Rule:
    """Divides a rule's state over devices; the numbers stay those of the rule.

    Under `jit`, name a mesh and the axis (or axes) of data parallelism:

        rule = jl.zero(jl.adamw(3e-4), mesh, axis="data")

    `init` allocates the shares in place. In `update` each device gets its share of the gradient,
    runs the rule on it and shares the result; XLA turns this into a reduce-scatter and an all-gather.
    The rule sees whole leaves, so any rule works, one with norms or matrix products too. Axes of the
    mesh may be Auto or Explicit. Updates come back in the layout that the parameters had in `init`;
    call `init` outside `jit` if they are sharded (inside `jit` and `jax.eval_shape`, under Auto axes,
    they count as replicated; `jl.abstract_state` sees their shardings). Under Explicit axes the rule cannot
    close over traced arrays: pass them to `update`.
    Parameters that `axis` divides already (FSDP) keep their layout, and so does their state.

    Each leaf is divided along one dimension: one that divides evenly, minor to a mesh axis that divides
    it already, else not the last if that can be. Where none divides, one is zero-padded by at most 1 %
    in storage; else the leaf is stored flat. `jl.explain(rule, params)` shows every decision.

    Inside `shard_map`, `pmap` and other mapped axes, name the axis; `init` must run inside too:

        rule = jl.zero(jl.adamw(3e-4), axis_name="data")

    There `update` takes each device's *own* gradients and averages them over the axis, in float32.
    (What `shard_map` types as equal on all devices passes unchanged; elsewhere an average of equal
    gradients may round once more.) `update(..., weight=n)` weights the mean, say by each device's number
    of tokens; where no device has any, the rule sees gradients of 0. Leaves below `min_bytes` are
    exchanged together, in one collective. The inner rule sees shares: rules of ours sum over the axis
    where they reduce; a rule of optax that reduces over a leaf, draws random numbers for one, or works
    otherwise on other shapes, is refused by name.

    Args:
      rule: any rule.
      mesh: the mesh; an abstract one will do for `state_shardings` and `explain`.
      axis: one of its axes, or a tuple of them.
      axis_name: the mapped axis, in place of mesh and axis.
      layers: a glob over the parameters whose first dimension runs over the layers of a `lax.scan`: it
        is not cut, since compilers lose the reduce-scatter there.
      min_bytes: parameters smaller than this keep their layout, and so does their state: a collective
        costs more than they weigh.
      specs: glob over state paths -> PartitionSpec, for leaves that follow no parameter.

    Returns:
      The rule; its state is `ZeroState(inner, layout)`.

    Raises:
      ValueError: the axis is not in the mesh, or named twice; from `init`, when a large state leaf follows no
        parameter, or the parameters live on another mesh; from `update`, when the state was made for
        another mesh, or gradients have other shapes; inside a mapped axis, when the rule would reduce
        over a share.
      TypeError: neither a mesh with an axis nor an axis_name is given, or both.

    Source: Rajbhandari et al. 2020, arXiv:1910.02054, section 5.1.
    """
    check_rule("zero", rule)
    if (mesh is None or axis is None) == (axis_name is None) or (mesh is None) != (axis is None):
        raise TypeError(
            message(
                "zero",
                f"got mesh={mesh!r}, axis={axis!r}, axis_name={axis_name!r}",
                allowed="a mesh and an axis under jit, or axis_name alone inside pmap",
            )
        )
    if isinstance(min_bytes, bool) or not isinstance(min_bytes, int) or min_bytes < 0:
        raise ValueError(
            message("zero", f"min_bytes is out of range, got {min_bytes!r}", allowed="bytes >= 0")
        )
    options = Options(layers, min_bytes, specs)
    if axis_name is not None:
        if not isinstance(axis_name, str):
            raise TypeError(message("zero", f"axis_name is not a string, got {axis_name!r}"))
        if layers is not None or specs is not None:
            raise TypeError(message("zero", "layers and specs are for a mesh", do="Leave them out"))
        return zero_in_mapped_axis(rule, axis_name, options)
    mesh = checked_mesh("zero", mesh)
    axes = axis if isinstance(axis, tuple) else (axis,)
    if not axes or not all(isinstance(name, str) for name in axes) or len(set(axes)) < len(axes):
        raise ValueError(
            message("zero", f"axis is out of range, got {axis!r}", allowed="a name, or a tuple of names")
        )
    problems = Problems("zero")
    for name in axes:
        if name not in mesh.shape:
            problems.add(
                f"axis is not in the mesh, got {name!r}",
                allowed=f"the axes are {', '.join(f'{n!r} ({s})' for n, s in mesh.shape.items())}",
            )
    problems.raise_if_any()
    return zero_in_jit(rule, mesh, axes, options)
