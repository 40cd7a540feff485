"""ZeRO-1: each device keeps its share of the optimizer state (Rajbhandari et al. 2020)."""

from typing import Any

from jax.sharding import AbstractMesh, Mesh

from .._errors import Problems, message
from .._types import AnyRule, Rule
from ._jit import zero_in_jit
from ._mapped import zero_in_mapped_axis


def zero(
    rule: AnyRule, mesh: Mesh | AbstractMesh | None = None, axis: Any = None, *, axis_name: str | None = None
) -> Rule:
    """Divides a rule's state over devices; the numbers stay those of the rule.

    Under `jit`, name a mesh and the axis (or axes) of data parallelism:

        rule = jl.zero(jl.adamw(3e-4), mesh, axis="data")

    `init` allocates the shares in place. In `update` each device gets its share of the gradient,
    runs the rule on it and shares the result; XLA turns this into a reduce-scatter and an all-gather.
    Updates come back in the layout that the parameters had in `init`; call `init` outside `jit` if
    they are sharded (inside, they count as replicated).

    Inside `pmap` and other mapped axes, name the axis; `init` must run inside too:

        rule = jl.zero(jl.adamw(3e-4), axis_name="data")

    There `update` takes each device's *own* gradients and averages them over the axis (gradients that
    are averaged already pass unchanged), in float32.

    Each leaf is divided along one dimension, zero-padded where none divides; the inner rule sees the
    padding as parameters that are 0 and have gradient 0. Rules that work element by element, and
    norms, do not notice.

    Args:
      rule: any rule whose state holds scalars and leaves shaped like the parameters.
      mesh: the mesh; an abstract one will do for `state_shardings`.
      axis: one of its axes, or a tuple of them.
      axis_name: the mapped axis, in place of mesh and axis.

    Returns:
      The rule; its state is `ZeroState(inner, layout)`.

    Raises:
      ValueError: the axis is not in the mesh; from `init`, when a state leaf follows no parameter or
        the parameters live on another mesh; from `update`, when the state was made for another mesh.
      TypeError: neither a mesh with an axis nor an axis_name is given, or both.

    Source: Rajbhandari et al. 2020, arXiv:1910.02054, section 5.1.
    """
    if not (hasattr(rule, "init") and hasattr(rule, "update")):
        raise TypeError(message("zero", f"rule is not a rule, got {rule!r}"))
    if (mesh is None or axis is None) == (axis_name is None) or (mesh is None) != (axis is None):
        raise TypeError(
            message(
                "zero",
                f"got mesh={mesh!r}, axis={axis!r}, axis_name={axis_name!r}",
                allowed="a mesh and an axis under jit, or axis_name alone inside pmap",
            )
        )
    if axis_name is not None:
        return zero_in_mapped_axis(rule, axis_name)
    if not isinstance(mesh, Mesh | AbstractMesh):
        raise TypeError(
            message(
                "zero", f"mesh is not a mesh, got {mesh!r}", allowed="jax.make_mesh(...) or an AbstractMesh"
            )
        )
    axes = axis if isinstance(axis, tuple) else (axis,)
    problems = Problems("zero")
    for name in axes:
        if name not in mesh.shape:
            problems.add(
                f"axis is not in the mesh, got {name!r}",
                allowed=f"the axes are {', '.join(f'{n!r} ({s})' for n, s in mesh.shape.items())}",
            )
    problems.raise_if_any()
    return zero_in_jit(rule, mesh, axes)
