"""`zero` inside a mapped axis: reduce-scatter, the inner rule on the share, all-gather."""

from typing import Any

import jax
import optax
from jaxtyping import Array

from .._axes import sharded_over
from .._compat import axis_size
from .._errors import message
from .._numerics import accumulation_dtype
from .._types import AnyRule, Params, Rule, Updates, make_rule
from ._cuts import Cut, choose_cut
from ._layout import Layout, ZeroState, follow


def zero_in_mapped_axis(rule: AnyRule, axis_name: str) -> Rule:
    rule = optax.with_extra_args_support(rule)

    def init(params: Params) -> ZeroState:
        shares = _size(axis_name)
        layout = _plan(rule, params, axis_name, shares)
        with sharded_over(axis_name):
            return ZeroState(rule.init(_own(params, layout)), layout)

    def update(
        updates: Updates, state: ZeroState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ZeroState]:
        shares = _size(axis_name)
        layout = state.layout
        if layout.shares != shares or layout.mesh is not None:
            raise ValueError(
                message(
                    "zero",
                    f"the state was made for {layout.shares} devices, got an axis of {shares}",
                    do=f"Call init inside the same mapped axis {axis_name!r}",
                )
            )
        leaves, treedef = jax.tree.flatten(updates)
        mine = [_mean_share(g, cut, axis_name, shares) for g, cut in zip(leaves, layout.params, strict=True)]
        values = None if params is None else _own(params, layout)
        with sharded_over(axis_name):
            changes, inner = rule.update(treedef.unflatten(mine), state.inner, values, **extra)
        whole = [
            _gathered(u, cut, axis_name, g.shape)
            for u, cut, g in zip(jax.tree.leaves(changes), layout.params, leaves, strict=True)
        ]
        return treedef.unflatten(whole), ZeroState(inner, layout)

    return make_rule(init, update)


def _plan(rule: Rule, params: Params, axis_name: str, shares: int) -> Layout:
    leaves, treedef = jax.tree.flatten(params)
    cuts = [choose_cut(x.shape, shares) for x in leaves]
    shapes = [c.share_shape(x.shape, shares) if c else x.shape for c, x in zip(cuts, leaves, strict=True)]
    own = [jax.ShapeDtypeStruct(s, x.dtype) for s, x in zip(shapes, leaves, strict=True)]
    abstract = jax.eval_shape(rule.init, treedef.unflatten(own))
    followed = follow("zero", abstract, params, lambda i: shapes[i])
    # a lone element that follows no parameter is a scalar of the rule, not a share
    return Layout(
        axes=(axis_name,),
        shares=shares,
        mesh=None,
        params=tuple(cuts),
        state=tuple(None if f.param is None else cuts[f.param] for f in followed),
        shapes=tuple(
            x.shape if f.param is None else leaves[f.param].shape
            for f, x in zip(followed, jax.tree.leaves(abstract), strict=True)
        ),
    )


def _own(tree: Any, layout: Layout) -> Any:
    """This device's share of a tree of which every device holds all."""
    index = jax.lax.axis_index(layout.axes[0])
    leaves, treedef = jax.tree.flatten(tree)
    shares = []
    for x, cut in zip(leaves, layout.params, strict=True):
        if cut is None:
            shares.append(x)
            continue
        length = cut.padded // layout.shares
        shares.append(jax.lax.dynamic_slice_in_dim(cut.pad(x), index * length, length, axis=cut.dim))
    return treedef.unflatten(shares)


def _mean_share(g: Array, cut: Cut | None, axis_name: str, shares: int) -> Array:
    """This device's share of the mean over devices, summed in the accumulation dtype."""
    if cut is None:
        return g
    wide = cut.pad(g).astype(accumulation_dtype(g.dtype))
    total = jax.lax.psum_scatter(wide, axis_name, scatter_dimension=cut.dim, tiled=True)
    return (total / shares).astype(g.dtype)


def _gathered(u: Array, cut: Cut | None, axis_name: str, shape: tuple[int, ...]) -> Array:
    if cut is None:
        return u
    return cut.unpad(jax.lax.all_gather(u, axis_name, axis=cut.dim, tiled=True), shape)


def _size(axis_name: str) -> int:
    try:
        return axis_size(axis_name)
    except NameError:
        raise ValueError(
            message(
                "zero",
                f"axis_name is not a mapped axis here, got {axis_name!r}",
                do="Call init and update inside jax.pmap(..., axis_name=...), or give a mesh for jit",
            )
        ) from None
