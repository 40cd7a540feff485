"""Muon: momentum made orthogonal by Newton-Schulz iterations (Jordan 2024)."""

import math
from collections.abc import Callable
from typing import Annotated

from .._hyperparameters import (
    Axes,
    Count,
    Decay,
    Glob,
    Mask,
    NonNegative,
    OneOf,
    OtherRule,
    Positive,
    Rate,
    Roles,
    StateDtype,
    checked,
)
from .._types import Rule
from ..leafwise import joined
from ..matrix.plan import checked_matrices
from ..matrix.roles import OTHER_LEAVES
from ._full_matrix_rule import full_matrix_rule
from ._momentum import momentum
from ._registry import rule
from .orthogonalize import Coeffs, Preconditioning, orthogonalize
from .weight_decay import add_decayed_weights

__all__ = ["muon", "scale_by_muon"]

SCALES: dict[str, Callable[[int, int], float]] = {
    "keller": lambda rows, columns: math.sqrt(max(1.0, columns / rows)),
    "moonlight": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
    "spectral": lambda rows, columns: math.sqrt(columns / rows),
}
"""(inputs, outputs) -> what a matrix with singular values of 1 is multiplied by."""


@checked
def scale_by_muon(
    ns_coeffs: Coeffs = "keller",
    ns_steps: Count = 5,
    beta: Decay = 0.95,
    eps: NonNegative = 1e-8,
    mu_dtype: StateDtype = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: Preconditioning = "frobenius",
    scale: Annotated[str | None, OneOf(*SCALES)] = None,
    ns_dtype: StateDtype = None,
    roles: Roles = None,
    other_leaves: Glob = OTHER_LEAVES,
    owners: Axes = None,
) -> Rule:
    r"""The direction of Muon, see `muon`; every leaf must be a matrix."""
    direction = orthogonalize(
        ns_coeffs,
        ns_steps,
        eps,
        adaptive=adaptive,
        preconditioning=preconditioning,
        factor=None if scale is None else SCALES[scale],
        ns_dtype=ns_dtype,
        roles=roles,
        other_leaves=other_leaves,
        owners=owners,
    )
    return joined("scale_by_muon", momentum(beta, nesterov, mu_dtype), direction)


@rule
def muon(
    learning_rate: Rate,
    ns_coeffs: Coeffs = "keller",
    ns_steps: Count = 5,
    beta: Decay = 0.95,
    eps: NonNegative = 1e-8,
    weight_decay: Rate = 0.0,
    weight_decay_mask: Mask = None,
    mu_dtype: StateDtype = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: Preconditioning = "frobenius",
    scale: Annotated[str, OneOf(*SCALES)] = "keller",
    cautious: bool = False,
    ns_dtype: StateDtype = None,
    roles: Roles = None,
    other: OtherRule = None,
    other_ratio: Positive = 0.3,
    other_leaves: Glob = OTHER_LEAVES,
    owners: Axes = None,
) -> Rule:
    r"""Muon: momentum, orthogonalized, for matrices; another rule for all other leaves.

    $$\mu_t = \beta \mu_{t-1} + (1-\beta) g_t, \qquad
      M_t = \mu_t \quad (\text{Nesterov: } \beta \mu_t + (1-\beta) g_t)$$
    $$X_0 = M_t / (\lVert M_t \rVert_F + \epsilon), \qquad
      X_{k+1} = a X_k + (b A + c A^2) X_k, \quad A = X_k X_k^*$$
    $$\theta_{t+1} = \theta_t - \eta_t (s X_K + \lambda_t \theta_t)$$

    Leaves of two dimensions are matrices [in, out] with $m$ inputs and $n$ outputs; `roles` says how others
    are read. $s$ is $\sqrt{\max(1, n/m)}$ (`"keller"`), $0.2\sqrt{\max(m, n)}$ (`"moonlight"`, which suits
    AdamW's learning rates) or $\sqrt{n/m}$ (`"spectral"`). Each matrix is worked on whole: on several devices
    equal matrices are stacked and the stack is divided.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      ns_coeffs: $a$, $b$, $c$; or those of each iteration; or a name: "keller", whose singular values end in
        [0.47, 1.20], "polar_express" in [0.86, 1.14], "dion" in [0.47, 1.15] but nearer to 1.
      ns_steps: $K$, iterations; the last of fewer coefficients is repeated.
      beta: $\beta$ in [0, 1).
      eps: $\epsilon \ge 0$.
      weight_decay: $\lambda$, like the learning rate; multiplied by it.
      weight_decay_mask: which matrices decay: a glob over paths, a tree of booleans, a prefix of one, or a
        function from the parameters to one of these; all of them by default.
      mu_dtype: floating dtype of `mu`; by default float32 (float64 for float64).
      nesterov: look ahead along the momentum.
      adaptive: multiply by the dual norm $\langle M_t, X_K \rangle$.
      preconditioning: what comes before the first iteration: "frobenius", as above; "spectral", by the
        largest singular value, which is slow; "aol" and "schatten", of which fewer iterations are as good.
      scale: $s$.
      cautious: decay only where the step goes towards 0 anyway.
      ns_dtype: of the products' operands; by default bfloat16 (float64 for float64), to which the momentum
        is rounded first. Norms and sums are in float32.
      roles: glob -> role, for leaves of more than two dimensions and others that are read otherwise: see
        `jl.roles.stack`, `jl.roles.fused`, `jl.roles.experts`, `jl.roles.convolution`.
      other: the rule for all other leaves; by default AdamW without decay.
      other_ratio: of its learning rate to this one.
      other_leaves: a glob of those; embeddings, heads, norms and biases by their usual names. What has less
        than two dimensions is one of them.
      owners: axes of the parameters' mesh, or mapped axes, whose devices share the work; by default all axes
        of the mesh, or those that `zero` divides. What `init` sees of the parameters decides: call it outside
        `jit` (or `jl.init_state`), as under Auto axes tracers do not say where they are.

    Returns:
      The rule; its `update` needs `params`; `mu` is kept for matrices.

    Raises:
      ValueError: a value is out of range; from `init`, when a leaf of more than two dimensions has no role, a
        role does not fit, or no leaf is a matrix.
      TypeError: a value is of another kind.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; Liu et al. 2025,
    arXiv:2502.16982, for "moonlight"; Bernstein and Newhouse 2024, arXiv:2409.20325, for "spectral" and
    `adaptive`.

    >>> rule = jl.muon(0.5, ns_coeffs="polar_express")
    >>> params = {"bias": jnp.zeros(2), "kernel": jnp.zeros((2, 2))}
    >>> updates, state = rule.update(jax.tree.map(jnp.ones_like, params), rule.init(params), params)
    >>> values = jnp.linalg.svd(updates["kernel"], compute_uv=False)  # of a gradient of rank 1
    >>> [abs(round(float(x), 1)) for x in values]
    [0.4, 0.0]
    """
    matrices = checked_matrices("muon", roles, other_leaves, owners)
    direction = scale_by_muon(
        ns_coeffs,
        ns_steps,
        beta,
        eps,
        mu_dtype,
        nesterov=nesterov,
        adaptive=adaptive,
        preconditioning=preconditioning,
        scale=scale,
        ns_dtype=ns_dtype,
        roles=roles,
        other_leaves=other_leaves,
        owners=owners,
    )
    decay = add_decayed_weights(weight_decay, weight_decay_mask, cautious=cautious)
    return full_matrix_rule("muon", matrices, learning_rate, direction, decay, other, other_ratio)
