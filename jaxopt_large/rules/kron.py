"""Kron: SGD with fitted Kronecker factors (PSGD: Li 2015; Pooladzandi and Li 2024)."""

from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from .._hyperparameters import (
    Axes,
    Count,
    Decay,
    Glob,
    Mask,
    OneOf,
    OtherRule,
    Positive,
    Rate,
    Roles,
    StateDtype,
    checked,
)
from .._numerics import as_decay, bias_correction, bounded, divide, ema, safe_increment, times
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
from ..matrix.lapack import upper_inverse
from ..matrix.norms import inverse, over_largest, root_of_squares
from ..matrix.plan import MatrixPlan, checked_matrices
from ..matrix.products import product
from ..matrix.roles import OTHER_LEAVES
from ..matrix.stage import matrix_stage, of_each
from ._full_matrix_rule import full_matrix_rule
from ._registry import rule
from .weight_decay import add_decayed_weights

__all__ = ["kron", "scale_by_kron"]

FORMS = ("products", "triangular")
_LONGEST_TURN = 1 / 8  # of a step that turns a factor towards a symmetric one
_CLIP = 1.1  # the largest root mean square of a block's update


class ScaleByKronState(NamedTuple):
    """State of Kron. A matrix [m, n] is cut into blocks [b, c]; factors are [..., blocks, b, b]."""

    matrices: MatrixPlan  # how leaves are read, and who works on them
    count: Int[Array, ""]  # steps taken
    mu: Updates  # mean gradient, float32, shapes of the parameters
    left: Updates  # Q_L, of which Q_L^T Q_L preconditions the rows, float32
    right: Updates  # Q_R, likewise the columns
    bounds: Updates  # of the norms that steps of the factors are divided by, [..., blocks, 2], float32


class _Shared(NamedTuple):
    """What all matrices share in a step."""

    number: Array  # of the step, from 1
    mu: Array  # correction of the bias of the mean


class _Fit(NamedTuple):
    """Of stacked blocks [k, b, c]: the factors, and the bounds of their steps."""

    left: Array
    right: Array
    bounds: Array


@checked
def scale_by_kron(
    b1: Decay = 0.9,
    mu_dtype: StateDtype = None,
    *,
    factor_rate: Positive = 0.1,
    form: Annotated[str, OneOf(*FORMS)] = "products",
    block: Count | None = None,
    roles: Roles = None,
    other_leaves: Glob = OTHER_LEAVES,
    owners: Axes = None,
) -> Rule:
    r"""The direction of Kron, see `kron`; every leaf must be a matrix."""
    who = "scale_by_kron"
    decay = as_decay(b1)
    fitted = {"products": _by_products, "triangular": _by_triangles}[form]

    def shared(kept: ScaleByKronState) -> _Shared:
        n = safe_increment(kept.count)
        return _Shared(n, bias_correction(decay, n))

    def step(shared: _Shared, g: Array, p: Any, kept: ScaleByKronState) -> tuple[Array, Any]:
        del p
        cut = blocks_of(g.shape[1], g.shape[2], block)
        g = bounded(g, cut.rows * cut.columns)
        mu = ema(kept.mu, g, decay)
        blocks, means = (stacked(cut.split(x)) for x in (g, mu / shared.mu))
        fit = parts_of(kept, _Fit)
        fine = all_finite(blocks) & jnp.any(blocks != 0, axis=(1, 2))
        unseen = fine & jnp.all(fit.bounds == 0, axis=1)
        begins = unseen | (shared.number == 1)
        fit = chosen(begins, _begun(cut, fit, blocks), fit)
        new = fitted(cut, fit, blocks, factor_rate)
        fine &= all_finite(new.left) & all_finite(new.right) & jnp.all(jnp.isfinite(new.bounds), axis=1)
        fit = chosen(fine, new, fit)
        made = _preconditioned(cut, fit, means)
        size = jnp.sqrt(jnp.mean(jnp.square(made), axis=(1, 2), keepdims=True))
        made = made * jnp.where(size > _CLIP, divide(jnp.full_like(size, _CLIP), size), 1.0)
        return cut.joined(made), with_parts(kept, fit)._replace(mu=mu)

    def factor(side: str) -> Any:
        return of_each(lambda matrix: blocks_of(matrix[0], matrix[1], block).factor(side))

    fields = {
        "count": count(),
        "mu": zeros(mu_dtype),
        "left": factor("left"),
        "right": factor("right"),
        "bounds": of_each(lambda matrix: (blocks_of(matrix[0], matrix[1], block).total, 2)),
    }
    stage = matrix_stage(
        step,
        ScaleByKronState,
        checked_matrices(who, roles, other_leaves, owners),
        flops=lambda rows, columns: _flops(blocks_of(rows, columns, block)),
        misfit=lambda sizes: misfit(sizes, block),
        real=True,
        fields=fields,
        shared=shared,
    )
    return lift(who, stage, chained=False)


@rule
def kron(
    learning_rate: Rate,
    b1: Decay = 0.9,
    weight_decay: Rate = 0.0,
    weight_decay_mask: Mask = None,
    mu_dtype: StateDtype = None,
    *,
    factor_rate: Positive = 0.1,
    form: Annotated[str, OneOf(*FORMS)] = "products",
    block: Count | None = None,
    cautious: bool = False,
    roles: Roles = None,
    other: OtherRule = None,
    other_ratio: Positive = 1.0,
    other_leaves: Glob = OTHER_LEAVES,
    owners: Axes = None,
) -> Rule:
    r"""Kron: a preconditioner $Q_L^T Q_L \otimes Q_R^T Q_R$ that whitens gradients, for matrices.

    All other leaves have another rule. For each block $G_t$, $b \times c$, of a matrix, with
    $P = Q_L^T Q_L G_t Q_R^T Q_R$ in the form of matrix products, and likewise for $Q_R$,

    $$E = P P^T, \qquad \ell \leftarrow \max(0.9 \ell + 0.1 n, n), \quad n = \lVert E \rVert + c$$
    $$Q_L \leftarrow Q_L - \frac{\gamma}{\ell} (E - c I) Q_L$$

    and then a step that turns $Q_L$ towards a symmetric matrix. In the triangular form, with
    $A = Q_L G_t Q_R^T$ and $B B^T$ the mean over standard normal $V$ for $B = Q_L^{-T} V Q_R^{-1}$,

    $$Q_L \leftarrow Q_L - \frac{\gamma}{\ell} \, \mathrm{triu}(A A^T - B B^T) Q_L$$

    with $\ell = \lVert A A^T + B B^T \rVert$. The update is the mean gradient between the factors, its root
    mean square clipped:

    $$\theta_{t+1} = \theta_t - \eta_t (Q_L^T Q_L \hat\mu_t Q_R^T Q_R + \lambda_t \theta_t)$$

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      b1: of the mean gradient, in [0, 1).
      weight_decay: $\lambda$, like the learning rate; multiplied by it.
      weight_decay_mask: which matrices decay.
      mu_dtype: floating dtype of `mu`.
      factor_rate: $\gamma$.
      form: of the factors' steps: "products", or "triangular", which solves triangular systems.
      block: the longest side of a block; by default 512. A side without a divisor near it has no factor.
      cautious: decay only where the step goes towards 0 anyway.
      roles: glob -> role, see `muon`, as all others.
      other: the rule for all other leaves; by default AdamW without decay.
      other_ratio: of its learning rate to this one.
      other_leaves: a glob of those.
      owners: axes whose devices share the work.

    Returns:
      The rule; its `update` needs `params`; `mu` and the factors are kept for matrices.

    Raises:
      ValueError: as `muon`.
      TypeError: as `muon`.

    Source: Li 2015, arXiv:1512.04202; Pooladzandi and Li 2024, arXiv:2402.04553; the means over V are taken
    exactly in the place of a sample.
    """
    matrices = checked_matrices("kron", roles, other_leaves, owners)
    direction = scale_by_kron(
        b1,
        mu_dtype,
        factor_rate=factor_rate,
        form=form,
        block=block,
        roles=roles,
        other_leaves=other_leaves,
        owners=owners,
    )
    decay = add_decayed_weights(weight_decay, weight_decay_mask, cautious=cautious)
    return full_matrix_rule("kron", matrices, learning_rate, direction, decay, other, other_ratio)


def _preconditioned(cut: Blocks, fit: _Fit, x: Array) -> Array:
    """$Q_L^T Q_L X Q_R^T Q_R$."""
    x = product(fit.left.mT, product(fit.left, x)) if cut.left else x
    return product(product(x, fit.right.mT), fit.right) if cut.right else x


def _begun(cut: Blocks, fit: _Fit, g: Array) -> _Fit:
    """Multiples of the identity that bring the first gradient to the size of 1."""
    parts, largest = over_largest(g)
    size = largest * jnp.mean(parts**4, axis=(1, 2), keepdims=True) ** 0.25
    sides = max(int(cut.left) + int(cut.right), 1)
    scale = jnp.where(size > 0, size, 1.0) ** (-0.5 / sides)
    left, right = (scale * jnp.eye(x.shape[-1], dtype=x.dtype)[None] for x in (fit.left, fit.right))
    return fit._replace(left=left, right=right)


# --- steps of the factors -----------------------------------------------------------------------------


def _by_products(cut: Blocks, fit: _Fit, g: Array, rate: Any) -> _Fit:
    """By products of matrices alone, and a turn towards symmetric factors."""
    made = bounded(_preconditioned(cut, fit, g), cut.rows * cut.columns)
    bounds, sides = [], []
    for n, (there, q, squares, mean) in enumerate(
        (
            (cut.left, fit.left, product(made, made.mT), float(cut.columns)),
            (cut.right, fit.right, product(made.mT, made), float(cut.rows)),
        )
    ):
        bound = fit.bounds[:, n]
        if there:
            now = _norm_of(squares) + mean
            bound = jnp.maximum(0.9 * bound + 0.1 * now, now)
            move = product(squares, q) - mean * q
            q = _turned(q - (rate / bound)[:, None, None] * move)
        bounds.append(bound)
        sides.append(q)
    return _Fit(sides[0], sides[1], jnp.stack(bounds, axis=1))


def _by_triangles(cut: Blocks, fit: _Fit, g: Array, rate: Any) -> _Fit:
    """By the relative gradient on upper triangular factors."""
    a = product(fit.left, g) if cut.left else g
    a = product(a, fit.right.mT) if cut.right else a
    inverse = [upper_inverse(q) for q in (fit.left, fit.right)]
    sizes = [
        jnp.sum(jnp.square(x), axis=(1, 2)) if there else jnp.full(x.shape[:1], float(n), x.dtype)
        for x, there, n in zip(inverse, (cut.left, cut.right), (cut.rows, cut.columns), strict=True)
    ]
    bounds, sides = [], []
    for n, (there, q, squares) in enumerate(
        ((cut.left, fit.left, product(a, a.mT)), (cut.right, fit.right, product(a.mT, a)))
    ):
        bound = fit.bounds[:, n]
        if there:
            noise = sizes[1 - n][:, None, None] * product(inverse[n].mT, inverse[n])
            bound = _norm_of(squares + noise)
            q = q - (rate / bound)[:, None, None] * product(jnp.triu(squares - noise), q)
        bounds.append(bound)
        sides.append(q)
    return _Fit(sides[0], sides[1], jnp.stack(bounds, axis=1))


def _norm_of(a: Array) -> Array:
    """Of a symmetric matrix, nearly: two power iterations from its longest row."""
    a, largest = over_largest(a)
    longest = jnp.argmax(jnp.sum(jnp.square(a), axis=2), axis=1)
    x = jnp.take_along_axis(a, longest[:, None, None], axis=1).mT
    for _ in range(2):
        x = product(a, times(inverse(root_of_squares(x)), x))
    return (largest * root_of_squares(x))[:, 0, 0]


def _turned(q: Array) -> Array:
    """A step of the rotation that makes `q` symmetric (orthogonal Procrustes, by its generator)."""
    r = q.mT - q
    size = jnp.sqrt(_norm_of(product(r, r.mT)))[:, None, None]
    r = divide(r, jnp.broadcast_to(size, r.shape))
    first = product(r, q)
    second = product(r, first)
    one, two = (jnp.trace(x, axis1=1, axis2=2) for x in (first, second))
    best = jnp.clip(divide(-one, jnp.where(two < 0, two, 1.0)), 0.0, _LONGEST_TURN)
    step = jnp.where(two < 0, best, _LONGEST_TURN)[:, None, None]
    return q + step * (first + 0.5 * step * second)


def _flops(cut: Blocks) -> float:
    """Of a matrix: two preconditioned blocks, and steps of the factors."""
    b, c = cut.rows, cut.columns
    sides = [n for n, there in ((b, cut.left), (c, cut.right)) if there]
    return cut.total * sum(10.0 * b * c * n + 4 * 2.0 * n**3 for n in sides)
