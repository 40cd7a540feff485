"""Hyperball: matrices keep their norm, in the place of weight decay (Wen et al. 2025)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array

from .._errors import check_rule
from .._hyperparameters import Axes, Glob, Roles, checked
from .._numerics import divide
from .._states import check_state, explained
from .._types import Params, Rule, State, Updates, make_rule
from ..leafwise import lift
from ..matrix.norms import frobenius
from ..matrix.plan import MatrixPlan, checked_matrices
from ..matrix.roles import OTHER_LEAVES
from ..matrix.routing import with_other_leaves
from ..matrix.stage import matrix_stage

__all__ = ["hyperball"]


class OnSphereState(NamedTuple):
    """State of what brings matrices back to their norm: none but the plan."""

    matrices: MatrixPlan  # how leaves are read, and who works on them


class HyperballState(NamedTuple):
    """State of `hyperball`."""

    inner: State  # the wrapped rule's
    sphere: State  # how leaves are read


@checked
def hyperball(
    rule: Any, *, roles: Roles = None, other_leaves: Glob = OTHER_LEAVES, owners: Axes = None
) -> Rule:
    r"""Keeps the norm of each matrix: a step of the rule, and back onto the sphere.

    $$\theta_{t+1} = \lVert \theta_t \rVert_F \frac{\theta_t + u_t}{\lVert \theta_t + u_t \rVert_F}$$

    with $u_t$ the rule's update; give it no weight decay. The learning rate is then the angle of a step, and
    the same for all widths. A matrix of zeros moves as the rule says, as do all other leaves.

    Args:
      rule: any rule.
      roles: glob -> role, see `muon`: each matrix of a stack has a norm of its own.
      other_leaves: a glob of leaves that are no matrices.
      owners: axes whose devices share the work.

    Returns:
      The rule; its `update` needs `params`; its state is `HyperballState(inner, sphere)`.

    Raises:
      TypeError: rule is not a rule.

    Source: Wen et al. 2025, "Fantastic pretraining optimizers and where to find them II: from weight decay to
    hyperball optimization".

    >>> rule = jl.hyperball(jl.sgd(0.1))
    >>> params = jnp.array([[3.0, 0.0], [0.0, 4.0]])
    >>> updates, _ = rule.update(jnp.ones((2, 2)), rule.init(params), params)
    >>> round(float(jnp.linalg.norm(params + updates)), 5)
    5.0
    """
    check_rule("hyperball", rule)
    wrapped = optax.with_extra_args_support(rule)
    matrices = checked_matrices("hyperball", roles, other_leaves, owners)

    def step(shared: Any, u: Array, p: Array, kept: Any) -> tuple[Array, Any]:
        del shared
        moved = p + u
        radius = frobenius(p)
        back = moved * divide(radius, frobenius(moved)) - p
        return jnp.where(radius > 0, back, u), kept

    stage = matrix_stage(step, OnSphereState, matrices, transposes=True, needs_params=True)
    sphere = with_other_leaves(
        "hyperball", matrices, lift("hyperball", stage, chained=False), optax.identity()
    )

    def init(params: Params) -> HyperballState:
        return HyperballState(wrapped.init(params), sphere.init(params))

    def update(
        updates: Updates, state: HyperballState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, HyperballState]:
        check_state("hyperball", HyperballState, state)
        with explained("hyperball", wrapped.init, state.inner, updates, params):
            made, inner = wrapped.update(updates, state.inner, params, **extra)
        made, kept = sphere.update(made, state.sphere, params)
        return made, HyperballState(inner, kept)

    return make_rule(init, update)
