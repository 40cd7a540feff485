"""QK-Clip: queries and keys of heads whose logits have grown too large are scaled down (Kimi K2, 2025)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from .._errors import Problems, message
from .._hyperparameters import Positive, checked
from .._numerics import accumulation_dtype
from .._paths import first_match, leaf_paths, listed
from .._types import Params, Rule, State, Updates, make_rule
from ..matrix.readings import Flat
from ..matrix.roles import Role, checked_roles

__all__ = ["qk_clip"]


@checked
def qk_clip(heads: Mapping[str, Any], threshold: Positive = 100.0, *, power: Positive = 0.5) -> Rule:
    r"""Scales the weights of queries and keys down, head by head, where attention logits exceed a threshold.

    After the step of the rule before it in a chain, for each head $h$ with the largest logit $S_h$,

    $$W_{q,h}, W_{k,h} \leftarrow \min(1, \tau / S_h)^{1/2} \, W_{q,h}, \dots$$

    Write `optax.chain(rule, jl.qk_clip({"*/q|*/k": "in (12 out)"}))` and call
    `update(grads, state, params, max_logits=...)`.

    Args:
      heads: glob -> role of the leaves that make queries and keys: the role takes heads apart, as
        "in (12 out)" or "layers in (12 out)". Of a fused leaf, "in (3 12 out)", queries and keys are the
        first two of the three.
      threshold: $\tau$.
      power: of the factor that each of the two gets; 1 for a leaf of which only one is there.

    Returns:
      The rule; it keeps no state. Its `update` needs `params` and `max_logits`: the largest logit of each
      head, [heads] or [layers, heads]; or a mapping of the globs to such arrays.

    Raises:
      ValueError: a glob matches no leaf, a role does not fit, or `max_logits` has another shape.
      TypeError: `params` or `max_logits` are missing.

    Source: Kimi team 2025, arXiv:2507.20534, algorithm 1.

    >>> rule = jl.qk_clip({"q": "in (2 out)"}, threshold=10.0)
    >>> params = {"q": jnp.ones((1, 4))}
    >>> state, still, logits = rule.init(params), {"q": jnp.zeros((1, 4))}, jnp.array([40.0, 5.0])
    >>> updates, _ = rule.update(still, state, params, max_logits=logits)
    >>> (params["q"] + updates["q"]).tolist()
    [[0.5, 0.5, 1.0, 1.0]]
    """
    who = "qk_clip"
    roles = checked_roles(who, heads)
    others = [glob for glob, role in roles.items() if role.is_other]
    if others:
        raise ValueError(
            message(who, f"heads name {others[0]!r} with a role that has none", do="Leave it out")
        )

    def init(params: Params) -> optax.EmptyState:
        paths, problems = leaf_paths(params), Problems(who)
        for path, x in zip(paths, jax.tree.leaves(params), strict=True):
            glob = first_match(list(roles), path)
            wrong = "" if glob is None else roles[glob].misfit(x.shape)
            if wrong:
                problems.add(wrong, at=path)
        for glob in roles:
            if paths and not any(first_match(list(roles), path) == glob for path in paths):
                problems.add(
                    f"heads name {glob!r}, which gets no leaf", allowed=f"leaves are {listed(paths)}"
                )
        problems.raise_if_any()
        return optax.EmptyState()

    def update(
        updates: Updates, state: State, params: Params | None = None, *, max_logits: Any = None, **extra: Any
    ) -> tuple[Updates, State]:
        del extra
        if params is None or max_logits is None:
            missing = "params" if params is None else "max_logits"
            do = "Call update(grads, state, params, max_logits=...)"
            raise TypeError(message(who, f"{missing} are needed, got None", do=do))
        leaves, treedef = jax.tree.flatten(updates, is_leaf=lambda x: x is None)
        paths, made = leaf_paths(updates, is_leaf=lambda x: x is None), []
        for path, u, p in zip(paths, leaves, treedef.flatten_up_to(params), strict=True):
            glob = first_match(list(roles), path)
            if glob is None or u is None:
                made.append(u)
                continue
            if isinstance(max_logits, Mapping) and glob not in max_logits:
                wrong = f"max_logits have no {glob!r}"
                raise ValueError(message(who, wrong, at=path, allowed=listed(list(max_logits))))
            logits = max_logits[glob] if isinstance(max_logits, Mapping) else max_logits
            made.append(_clipped(who, roles[glob], path, u, p, logits, threshold, power))
        return treedef.unflatten(made), state

    return make_rule(init, update)


def _clipped(
    who: str, role: Role, path: str, u: Array, p: Array, logits: Any, threshold: Any, power: Any
) -> Array:
    """The update of a leaf, with its heads scaled."""
    view = role.view(p.shape)
    counts = (*(p.shape[d] for d in view.units), *view.inner_counts)
    logits = jnp.asarray(logits, jnp.float32)
    large = (logits > threshold) & jnp.isfinite(logits)  # what is not finite says nothing of the weights
    factor = jnp.where(large, threshold / jnp.where(large, logits, threshold), 1.0) ** power
    if len(view.inner_counts) == 2 and len(counts) == logits.ndim + 1:  # queries, keys, values: the last stay
        parts = [factor if n < 2 else jnp.ones_like(factor) for n in range(counts[-2])]
        factor = jnp.stack(parts, axis=-2)
    if factor.shape != counts:
        wrong = f"max_logits have shape {logits.shape}"
        raise ValueError(message(who, wrong, at=path, allowed=f"role {role.text!r} counts {counts}"))
    whole = jnp.broadcast_to(factor.reshape(-1, 1, 1), (factor.size, view.rows, view.columns))
    scale = Flat(p.shape, view.units, view).from_matrices(whole).reshape(p.shape)
    wide = accumulation_dtype(p.dtype)
    return (scale.astype(wide) * (p.astype(wide) + u.astype(wide)) - p.astype(wide)).astype(u.dtype)
