"""A whole step at once: gradients, state and parameters in, new parameters and state out."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh

from .._errors import message
from .._gradients import in_order
from .._nodes import StateNode, nodes_in
from .._order import is_planned
from .._types import AnyRule, Params, State, Updates
from ._dispatch import WAYS
from ._step import Step, step_of


def apply(
    rule: AnyRule, grads: Updates, state: State, params: Params, *, kernels: str = "auto", **extra: Any
) -> tuple[Params, State]:
    """One step of any rule in one pass over memory: the numbers of `update` and `optax.apply_updates`.

        params, state = jl.apply(rule, grads, state, params)

    in the place of

        updates, state = rule.update(grads, state, params)
        params = optax.apply_updates(params, updates)

    The rule is traced once and taken apart by parameter. What works element by element on gradient,
    parameter and state becomes one pass; numbers that it needs (norms, clip factors, schedules, decisions
    to skip) are computed before. Leaves with the same equations share one traced function; under `jit` a
    step that is short as it is, and has nothing in blocks, stays as it was traced. Where fields are
    `stored` in blocks, a pass of 65,536 elements and more is one Pallas kernel on TPU and GPU, and on CPU a
    loop over windows that stay in cache: codes are decoded as they are read and encoded as they are written,
    and neither a decoded copy nor the updates ever exist. Without blocks XLA's own fusions are at the floor
    already. `jl.explain_apply(rule, params)` says for each parameter which it is, and why.

    Under `zero` each device makes its share of the new parameters, and those are gathered, in their dtype:
    changes never exist whole. Stacks of 64 MiB and more on a device come layer by layer, in the place of the
    old ones. (Not where a wrapper around `zero` keeps arrays of the parameters' shapes, such as averages,
    which need whole changes; nor under Explicit axes, where types say how arrays are divided.)

    Donate parameters and state, in the order in which they are returned: JAX gives buffers to results of
    their shape in order, so that `donate_argnums` of `(state, params)` for results `(params, state)` makes
    copies.

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(params, state, grads):
            return jl.apply(rule, grads, state, params)

    On a mesh with Auto axes a kernel needs to know where arrays lie: `zero` tells, Explicit axes tell, and
    inside `shard_map(..., check_vma=False)` and `pmap` there is nothing to know. Elsewhere XLA runs.
    Call it under `jit`: outside, what is computed before the passes runs operation by operation. Derivatives
    are those of XLA's way, inside `jax.grad` and around a step that is jitted; kernels that are asked for by
    name have none.

    Args:
      rule: any rule, ours or optax's, in any wrappers.
      grads: as for `rule.update`.
      state: of the rule.
      params: the parameters.
      kernels: "auto": by the platform that is compiled for; "xla": none; "tpu", "gpu": kernels of that kind
        wherever they can be, taking arrays to be whole where nothing tells; "interpret": the same on any
        platform, slowly, for tests.
      **extra: what else `update` takes.

    Returns:
      The new parameters, in their dtypes, and the new state.

    Raises:
      ValueError: kernels is none of these; grads and params have different trees; params is None.
      TypeError: rule is not a rule.

    >>> rule = jl.stored(jl.adamw(1e-3), mu=jl.int8(), nu=jl.int8())
    >>> params = {"w": jnp.ones((64, 128))}
    >>> params, state = jl.apply(rule, params, rule.init(params), params)
    >>> round(float(params["w"][0, 0]), 6), int(state.step)
    (0.999, 1)
    """
    _check(rule, params, kernels)
    grads = in_order("apply", grads, params).tree
    around, shares = _who_divides(state, params)
    step = step_of(rule, extra, shares)
    taken = Step.taken(step, (grads, state, params))
    if taken is None:  # it does more than its results say
        made, new = step(grads, state, params)
    else:
        made, new = taken.run((grads, state, params), kernels)
    if around is None:
        return made, new
    leaves, treedef = jax.tree.flatten(made)
    return treedef.unflatten(around.gathered(leaves, treedef.flatten_up_to(params))), new


def _who_divides(state: State, params: Params) -> tuple[Any, list[Any] | None]:
    """The node that can gather all parameters from shares, and how these are divided; else None twice.

    Not where there are several, nor where something around it keeps arrays of the parameters' shapes, such as
    averages: those would need the changes whole, too.
    """
    leaves, found = jax.tree.leaves(state), list(nodes_in(state, StateNode.gathered))
    if len(found) != 1:
        return None, None
    ((node, first, end),) = found
    shares, mesh = node.gradient_shardings(len(jax.tree.leaves(params))), node.mesh()
    real = isinstance(mesh, Mesh) or (mesh is not None and is_planned())
    if shares is None or not real or any(kind != AxisType.Auto for kind in mesh.axis_types):
        return None, None
    shapes = {jnp.shape(x) for x in jax.tree.leaves(params)} - {()}
    if any(jnp.shape(x) in shapes for x in (*leaves[:first], *leaves[end:])):
        return None, None
    return node, shares


def _check(rule: Any, params: Any, kernels: str) -> None:
    if not hasattr(rule, "update"):
        raise TypeError(message("apply", f"rule is not a rule, got {rule!r}"))
    if params is None:
        raise ValueError(message("apply", "there are no params", do="Pass the parameters: they are returned"))
    if kernels not in WAYS:
        raise ValueError(message("apply", f"kernels is unknown, got {kernels!r}", allowed=f"one of {WAYS}"))
