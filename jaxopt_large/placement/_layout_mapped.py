"""Which share of each leaf a device of a mapped axis has: decided by `init`."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._axes import windows
from .._encoded import BLOCK, blocks_of, scale_shape
from .._errors import Problems
from .._numerics import accumulation_dtype
from .._owners import Owners
from .._paths import path_string
from .._types import Params, Rule
from .._window import Window
from ..matrix.fields import field_shapes
from ._cuts import Cut, blocked_cut, choose_cut, flat_cut
from ._init_in_place import traced_init
from ._layout import Layout
from ._layout_jit import Options
from ._reductions import ReductionError, refuse_reductions
from ._specs import dimension_maps, infer_specs, scales_in


def plan_shares(rule: Rule, params: Params, axis_name: str, shares: int, options: Options) -> Layout:
    """The layout for `params`: large leaves cut along a dimension, small ones flattened."""
    leaves, treedef = jax.tree.flatten(params)
    blocked = _blocked(rule, params)
    cuts = [
        blocked_cut(x.shape, shares)
        if i in blocked
        else choose_cut(x.shape, shares)
        if x.size * accumulation_dtype(x.dtype).itemsize >= options.min_bytes
        else flat_cut(x.shape, shares)
        for i, x in enumerate(leaves)
    ]
    own = [
        jax.ShapeDtypeStruct(c.share_shape(x.shape, shares) if c else x.shape, x.dtype)
        for c, x in zip(cuts, leaves, strict=True)
    ]
    tree = treedef.unflatten(own)
    with windows(_windows(params, [tuple(x.shape) for x in leaves], cuts, shares, jnp.int32(0))):
        _check_early(rule, tree, axis_name, shapes_of_rank_one(params))
        specs = [jax.sharding.PartitionSpec()] * len(own)
        _, abstract = traced_init(rule.init, tree)
        followed = infer_specs("zero", rule.init, abstract, tree, specs, None)
    scales, of_matrices = scales_in(abstract), field_shapes(abstract)
    problems, state, shapes = Problems("zero"), [], []
    for j, (f, (path, x)) in enumerate(
        zip(followed, jax.tree_util.tree_flatten_with_path(abstract)[0], strict=True)
    ):
        own_cut = None if f.owner is None else cuts[f.owner]
        if j in scales and f.owner is not None and own_cut is not None:
            node, whole = scales[j][1], leaves[f.owner].shape
            state.append(_scale_cut(own_cut, node.order, len(whole)))
            shapes.append(scale_shape(whole, node.order))
            continue
        if j in of_matrices:
            state.append(_field_cut(tuple(x.shape), of_matrices[j], shares))
            shapes.append(of_matrices[j])
            continue
        if f.param is None and f.owner is not None and _is_of_whole(tuple(x.shape), leaves[f.owner].shape):
            state.append(None)  # small statistics of the whole parameter, on each device
            shapes.append(tuple(x.shape))
            continue
        if f.param is None and x.size > 1:
            problems.add(
                f"inside a mapped axis a state leaf of shape {tuple(x.shape)} follows no parameter",
                at=path_string(path),
                allowed="leaves shaped like their parameter, and scalars",
                do="Use zero(rule, mesh, axis) under jit",
            )
        # a lone element that follows no parameter is a scalar of the rule, not a share
        state.append(None if f.param is None else cuts[f.param])
        shapes.append(x.shape if f.param is None else leaves[f.param].shape)
    problems.raise_if_any(ValueError)
    return Layout(
        axes=(axis_name,),
        shares=shares,
        mesh=None,
        params=tuple(cuts),
        state=tuple(state),
        param_shapes=tuple(tuple(x.shape) for x in leaves),
        shapes=tuple(shapes),
        owners=tuple(f.owner for f in followed),
        reasons=tuple(_reason(c) for c in cuts),
    )


def _blocked(rule: Rule, params: Params) -> set[int]:
    """The parameters of which the rule keeps blocks with scales."""
    keys = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    state = jax.eval_shape(lambda p: rule.init(p), shapes)
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]]
    owners = Owners(keys)
    return {i for j in scales_in(state) for i in owners.of(paths[j])[:1]}


def _scale_cut(cut: Cut, order: tuple[int, ...], rank: int) -> Cut:
    """How the scales of a parameter's blocks are cut where the parameter is."""
    dim = order.index(cut.dim)
    if cut.dim != rank - 1:
        return Cut(dim, cut.size, cut.padded)
    return Cut(dim, blocks_of(cut.size), cut.padded // BLOCK)


def _is_of_whole(shape: tuple[int, ...], param: tuple[int, ...]) -> bool:
    """Are these some of a parameter's dimensions, whole?"""
    return len(shape) < len(param) and next(dimension_maps(param, shape), None) is not None


def _field_cut(part: tuple[int, ...], whole: tuple[int, ...], shares: int) -> Cut | None:
    """How an array is cut of which a device has a part."""
    cut = [dim for dim, (n, size) in enumerate(zip(part, whole, strict=True)) if n != size]
    return Cut(cut[0], whole[cut[0]], part[cut[0]] * shares) if cut else None


def _windows(
    params: Params, shapes: Sequence[tuple[int, ...]], cuts: Sequence[Cut | None], shares: int, index: Any
) -> dict[Any, Window]:
    """Key path -> which part of the parameter a device has."""
    keys = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    return {
        key: cut.window(shape, index * (cut.padded // shares))
        for key, shape, cut in zip(keys, shapes, cuts, strict=True)
        if cut is not None
    }


def _check_early(rule: Rule, shares: Params, axis_name: str, whole: Params) -> None:
    """Refuses a rule in `init` already, where its update can be traced without further arguments."""
    try:
        state = jax.eval_shape(lambda p: rule.init(p), shares)
        refuse_reductions(rule, shares, state, shares, {}, axis_name, (whole, whole))
    except ReductionError:
        raise
    except Exception:  # it takes arguments that only the step has: `update` looks again
        return


def _reason(cut: Cut | None) -> str:
    if cut is None:
        return "no elements"
    if cut.dim is None:
        return "flattened, in one collective with other small leaves"
    return f"dimension {cut.dim}" + (f", padded from {cut.size} to {cut.padded}" if cut.waste else "")


def my_windows(tree: Any, layout: Layout) -> dict[Any, Window]:
    """Key path -> which part of the parameter this device has, inside the mapped axis."""
    index = jax.lax.axis_index(layout.axes[0])
    return _windows(tree, layout.param_shapes, layout.params, layout.shares, index)


def shapes_of_rank_one(tree: Any) -> Any:
    """A tree of shapes, with those of scalars as their shares have them: of rank 1."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape or (1,), x.dtype), tree)
