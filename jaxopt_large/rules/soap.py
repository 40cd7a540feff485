"""SOAP: Adam in the eigenbasis of Shampoo's factors (Vyas et al. 2024, arXiv:2409.11321)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from .._hyperparameters import (
    Axes,
    Count,
    Decay,
    Glob,
    Mask,
    NonNegative,
    OtherRule,
    Positive,
    Rate,
    Roles,
    StateDtype,
    checked,
)
from .._numerics import as_decay, bias_correction, bounded, divide, ema, plus, safe_increment
from .._types import Rule, Updates
from ..leafwise import count, lift, zeros
from ..matrix.blocks import (
    Blocks,
    all_finite,
    blocks_of,
    chosen,
    misfit,
    parts_of,
    stacked,
    with_parts,
)
from ..matrix.norms import frobenius
from ..matrix.plan import MatrixPlan, checked_matrices
from ..matrix.products import product
from ..matrix.refresh import Refresh
from ..matrix.roles import OTHER_LEAVES
from ..matrix.roots import first_basis, refreshed_basis, values_along
from ..matrix.stage import matrix_stage, numbers, of_each
from ._full_matrix_rule import full_matrix_rule
from ._registry import rule
from .weight_decay import add_decayed_weights

__all__ = ["scale_by_soap", "soap"]


_ROUNDING = 4.0  # of products of orthogonal matrices, in units of the norm's


class ScaleBySoapState(NamedTuple):
    """State of SOAP. A matrix [m, n] is cut into blocks [b, c]; factors are [..., blocks, b, b]."""

    matrices: MatrixPlan  # how leaves are read, and who works on them
    count: Int[Array, ""]  # steps taken
    mu: Updates  # mean gradient, float32, shapes of the parameters
    nu: Updates  # mean square in the eigenbasis, float32, shapes of the parameters
    left: Updates  # mean of G G^T, float32
    right: Updates  # mean of G^T G, float32
    left_basis: Updates  # its eigenvectors, in columns, float32
    right_basis: Updates  # likewise
    numbers: Updates | None  # of the matrices, which take turns where refreshes are staggered


class _Shared(NamedTuple):
    """What all matrices share in a step."""

    number: Array  # of the step, from 1
    mu: Array  # corrections of the biases of the means
    nu: Array


class _Bases(NamedTuple):
    """Of stacked blocks [k, b, c]: the means of G G^T and G^T G, and bases near their eigenvectors."""

    left: Array
    right: Array
    left_basis: Array
    right_basis: Array


@checked
def scale_by_soap(
    b1: Decay = 0.95,
    b2: Decay = 0.95,
    eps: NonNegative = 1e-8,
    mu_dtype: StateDtype = None,
    *,
    factor_decay: Decay | None = None,
    refresh: Count = 10,
    staggered: bool = False,
    block: Count | None = None,
    roles: Roles = None,
    other_leaves: Glob = OTHER_LEAVES,
    owners: Axes = None,
) -> Rule:
    r"""The direction of SOAP, see `soap`; every leaf must be a matrix."""
    who = "scale_by_soap"
    d1, d2 = as_decay(b1), as_decay(b2)
    schedule = Refresh(refresh, staggered)
    d3 = d2 if factor_decay is None else as_decay(factor_decay)

    def shared(kept: ScaleBySoapState) -> _Shared:
        n = safe_increment(kept.count)
        return _Shared(n, bias_correction(d1, n), bias_correction(d2, n))

    def step(shared: _Shared, g: Array, p: Any, kept: ScaleBySoapState) -> tuple[Array, Any]:
        del p
        cut = blocks_of(g.shape[1], g.shape[2], block)
        g = bounded(g, cut.rows * cut.columns)
        mu = ema(kept.mu, g, d1)
        blocks, means, nu = (stacked(cut.split(x)) for x in (g, mu, kept.nu))
        bases = parts_of(kept, _Bases)
        bases = jax.lax.cond(shared.number == 1, lambda b: _begun(cut, b, blocks, d3), lambda b: b, bases)
        nu = ema(nu, jnp.square(_into(cut, bases, blocks)), d2)
        root = plus(jnp.sqrt(nu / shared.nu), eps)
        turned = divide(_into(cut, bases, means) / shared.mu, root, eps)
        # where no gradient has been, a momentum is the rounding of its own products, or of its format
        made = _out_of(cut, bases, jnp.where(nu == 0, 0.0, turned))
        bases = jax.lax.cond(shared.number > 1, lambda b: _moved(cut, b, blocks, d3), lambda b: b, bases)
        due = schedule.is_due(shared.number, kept.numbers, len(g), cut.total) & (shared.number > 1)
        bases, nu = schedule.run(due, lambda x: _refreshed(cut, *x), (bases, nu))
        return cut.joined(made), with_parts(kept, bases)._replace(mu=mu, nu=cut.joined(nu))

    def factor(side: str) -> Any:
        return of_each(lambda matrix: blocks_of(matrix[0], matrix[1], block).factor(side))

    left, right = factor("left"), factor("right")
    fields = {
        "count": count(),
        "mu": zeros(mu_dtype),
        "nu": zeros(real=True),
        "left": left,
        "right": right,
        "left_basis": left,
        "right_basis": right,
        "numbers": numbers() if staggered else None,
    }
    stage = matrix_stage(
        step,
        ScaleBySoapState,
        checked_matrices(who, roles, other_leaves, owners),
        flops=lambda rows, columns: _flops(blocks_of(rows, columns, block), refresh),
        misfit=lambda sizes: misfit(sizes, block),
        real=True,
        fields=fields,
        shared=shared,
    )
    return lift(who, stage, chained=False)


@rule
def soap(
    learning_rate: Rate,
    b1: Decay = 0.95,
    b2: Decay = 0.95,
    eps: NonNegative = 1e-8,
    weight_decay: Rate = 0.0,
    weight_decay_mask: Mask = None,
    mu_dtype: StateDtype = None,
    *,
    factor_decay: Decay | None = None,
    refresh: Count = 10,
    staggered: bool = False,
    block: Count | None = None,
    cautious: bool = False,
    roles: Roles = None,
    other: OtherRule = None,
    other_ratio: Positive = 1.0,
    other_leaves: Glob = OTHER_LEAVES,
    owners: Axes = None,
) -> Rule:
    r"""SOAP: Adam in the eigenbasis of Shampoo's factors, for matrices; another rule for all other leaves.

    For each block $G_t$ of a matrix, with $Q_L$ and $Q_R$ the bases,

    $$\mu_t = b_1 \mu_{t-1} + (1-b_1) G_t, \qquad
      \nu_t = b_2 \nu_{t-1} + (1-b_2) (Q_L^T G_t Q_R)^2$$
    $$N_t = \frac{Q_L^T \mu_t Q_R / (1-b_1^t)}{\sqrt{\nu_t / (1-b_2^t)} + \epsilon}, \qquad
      \theta_{t+1} = \theta_t - \eta_t (Q_L N_t Q_R^T + \lambda_t \theta_t)$$
    $$L_t = b_3 L_{t-1} + (1-b_3) G_t G_t^T, \qquad R_t = b_3 R_{t-1} + (1-b_3) G_t^T G_t$$

    The bases begin near the eigenvectors of the first $L$ and $R$. At every `refresh`-th step their vectors
    are put in the order of their values, and $\nu$ with them, and moved towards the eigenvectors by a power
    iteration, $Q \leftarrow \mathrm{QR}(L Q)$.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      b1: $b_1$ in [0, 1).
      b2: $b_2$ in [0, 1).
      eps: $\epsilon \ge 0$.
      weight_decay: $\lambda$, like the learning rate; multiplied by it.
      weight_decay_mask: which matrices decay.
      mu_dtype: floating dtype of `mu`.
      factor_decay: $b_3$ in [0, 1); by default $b_2$.
      refresh: steps from one refresh of the bases to the next.
      staggered: refresh a share of all blocks in each step, in the place of all of them in some.
      block: the longest side of a block; by default 512. A side without a divisor near it has no factor.
      cautious: decay only where the step goes towards 0 anyway.
      roles: glob -> role, see `muon`, as all others.
      other: the rule for all other leaves; by default AdamW without decay.
      other_ratio: of its learning rate to this one.
      other_leaves: a glob of those.
      owners: axes whose devices share the work.

    Returns:
      The rule; its `update` needs `params`; `mu`, `nu`, the factors and their bases are kept for matrices.

    Raises:
      ValueError: as `muon`.
      TypeError: as `muon`.

    Source: Vyas et al. 2024, arXiv:2409.11321, algorithm 3; bases at the first step from the first gradient,
    which moves the parameters too.
    """
    matrices = checked_matrices("soap", roles, other_leaves, owners)
    direction = scale_by_soap(
        b1,
        b2,
        eps,
        mu_dtype,
        factor_decay=factor_decay,
        refresh=refresh,
        staggered=staggered,
        block=block,
        roles=roles,
        other_leaves=other_leaves,
        owners=owners,
    )
    decay = add_decayed_weights(weight_decay, weight_decay_mask, cautious=cautious)
    return full_matrix_rule("soap", matrices, learning_rate, direction, decay, other, other_ratio)


def _into(cut: Blocks, bases: _Bases, x: Array) -> Array:
    """$Q_L^T X Q_R$; what is no more than the rounding of the products is 0, or Adam would make it 1."""
    made = product(bases.left_basis.mT, x) if cut.left else x
    made = product(made, bases.right_basis) if cut.right else made
    norm = frobenius(x)
    is_rounding = jnp.abs(made) <= _ROUNDING * jnp.finfo(x.dtype).eps * norm
    return jnp.where(is_rounding, jnp.zeros((), x.dtype), made)


def _out_of(cut: Blocks, bases: _Bases, x: Array) -> Array:
    """$Q_L X Q_R^T$."""
    x = product(bases.left_basis, x) if cut.left else x
    return product(x, bases.right_basis.mT) if cut.right else x


def _moved(cut: Blocks, bases: _Bases, g: Array, decay: Any) -> _Bases:
    """With factors that have seen a gradient; one that is not finite they forget."""
    fine = all_finite(g)[:, None, None]

    def mean(old: Array, new: Array) -> Array:
        return jnp.where(fine, ema(old, new, decay), old)

    left = mean(bases.left, product(g, g.mT)) if cut.left else bases.left
    right = mean(bases.right, product(g.mT, g)) if cut.right else bases.right
    return bases._replace(left=left, right=right)


def _begun(cut: Blocks, bases: _Bases, g: Array, decay: Any) -> _Bases:
    """After the first gradient."""
    bases = _moved(cut, bases, g, decay)
    left = first_basis(bases.left) if cut.left else bases.left_basis
    right = first_basis(bases.right) if cut.right else bases.right_basis
    return bases._replace(left_basis=left, right_basis=right)


def _refreshed(cut: Blocks, bases: _Bases, nu: Array) -> tuple[_Bases, Array]:
    """With bases nearer to the eigenvectors of the factors."""
    if cut.left:
        order = _order(bases.left, bases.left_basis)
        nu = jnp.take_along_axis(nu, order[:, :, None], axis=1)
        basis = jnp.take_along_axis(bases.left_basis, order[:, None, :], axis=2)
        bases = bases._replace(left_basis=_finite(refreshed_basis(bases.left, basis), basis))
    if cut.right:
        order = _order(bases.right, bases.right_basis)
        nu = jnp.take_along_axis(nu, order[:, None, :], axis=2)
        basis = jnp.take_along_axis(bases.right_basis, order[:, None, :], axis=2)
        bases = bases._replace(right_basis=_finite(refreshed_basis(bases.right, basis), basis))
    return bases, nu


def _order(factor: Array, basis: Array) -> Array:
    """The places of a basis' vectors, the largest value first."""
    return jnp.argsort(values_along(factor, basis), axis=1, descending=True)


def _finite(new: Array, old: Array) -> Array:
    return chosen(all_finite(new), new, old)


def _flops(cut: Blocks, refresh: int) -> float:
    """Of a matrix: three turns into or out of the bases, factors, and a share of a refresh."""
    b, c = cut.rows, cut.columns
    sides = [(b, cut.left), (c, cut.right)]
    turns = sum(3 * 2.0 * b * c * n + 2.0 * b * c * n for n, there in sides if there)
    fresh = sum(2.0 * n**3 * 2 + 4.0 / 3.0 * n**3 for n, there in sides if there)
    return cut.total * (turns + fresh / refresh)
