"""The state of `zero`: divided arrays, the layout that says how, and what that means elsewhere."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from .._errors import message
from .._nodes import Decision, DeviceForm, DiskForm, Place, StateNode, by_owner, bytes_of, members
from .._partition import all_names, devices_along, entries, in_words, normal_spec
from .._types import Params, State
from ._cuts import Cut
from ._gathered import gathered
from ._layout import Layout
from ._pmap_arrays import assembled, check_shape, copied, copies_of, devices_of, whole


class _ZeroFields(NamedTuple):
    inner: State
    layout: Layout


class ZeroState(_ZeroFields, StateNode):
    """State of `zero`: the wrapped rule's, divided, and how."""

    __slots__ = ()

    # --- other forms of it ----------------------------------------------------------------------------

    def to_disk(self, form: DiskForm) -> Any:
        leaves, treedef = jax.tree.flatten(self.inner)
        layout, found = self.layout, []
        for x, cut, shape in zip(leaves, layout.state, layout.shapes, strict=True):
            if cut is not None and layout.mesh is None:
                _check_no_device_axis(x, cut, shape, layout)
            if cut is None or x.shape == shape:
                found.append(x)
            else:
                found.append(form.without_padding(x, _unpad(cut, shape), shape))
        return treedef.unflatten(found)

    def from_disk(self, values: Any, form: DiskForm) -> "ZeroState":
        leaves, treedef = jax.tree.flatten(self.inner)

        def padded(x: Any, cut: Cut | None, like: Any) -> Any:
            if cut is None or x.shape == like.shape:
                return x
            # inside `shard_map` a flattened leaf keeps its rank
            return form.with_padding(x, lambda x: cut.pad(x).reshape(like.shape), like)

        new = zip(treedef.flatten_up_to(values), self.layout.state, leaves, strict=True)
        return ZeroState(treedef.unflatten([padded(*x) for x in new]), self.layout)

    def to_global(self, form: DeviceForm) -> Any:
        leaves, treedef = jax.tree.flatten(self.inner)
        parts = zip(leaves, self.layout.state, self.layout.shapes, strict=True)
        return treedef.unflatten(
            [
                whole(x, form.mesh_of(x)) if cut is None else _joined(x, cut, shape, form.mesh_of(x))
                for x, cut, shape in parts
            ]
        )

    def to_per_device(self, values: Any, form: DeviceForm) -> "ZeroState":
        del form
        leaves, treedef = jax.tree.flatten(self.inner)
        layout = self.layout
        parts = zip(treedef.flatten_up_to(values), layout.state, layout.shapes, leaves, strict=True)
        new = [
            copied(x, like) if cut is None else _divided(x, cut, shape, layout, like)
            for x, cut, shape, like in parts
        ]
        return ZeroState(treedef.unflatten(new), layout)

    # --- where its arrays are -------------------------------------------------------------------------

    def mesh(self) -> Any:
        return self.layout.mesh

    def shardings(self) -> "ZeroState":
        return ZeroState(self.layout.state_shardings(self.inner), self.layout)

    def gradient_shardings(self, parameters: int) -> list[Any] | None:
        layout = self.layout
        if layout.mesh is None or len(layout.share_specs) != parameters:
            return None
        return [NamedSharding(layout.mesh, spec) for spec in layout.share_specs]

    def gathered(self, new: list[Any], old: list[Any]) -> list[Any]:
        layout = self.layout
        return gathered(new, old, layout.share_specs, layout.param_specs, layout.mesh)

    def reduced_gradients(self, axis_name: str | None) -> int:
        return len(self.layout.params) if self.layout.axes == (axis_name,) else 0

    def mapped_specs(self, outside: Callable[..., Any], divided: Sequence[Any], copies: int) -> "ZeroState":
        del outside, copies
        specs = [_share_spec(self.layout, index, divided) for index in range(len(self.layout.state))]
        return ZeroState(jax.tree.structure(self.inner).unflatten(specs), self.layout)

    # --- for explanations -----------------------------------------------------------------------------

    def places(self, inner: list[Place]) -> list[Place]:
        layout, found = self.layout, []
        for j, at in enumerate(inner):
            if layout.mesh is None:
                found.append(Place(at.bytes, at.bytes, _in_words(layout, layout.state[j])))
            else:
                spec = layout.state_specs[j]
                held = at.bytes // devices_along(all_names(spec), layout.mesh)
                found.append(Place(at.bytes, held, in_words(spec)))
        return found

    def decisions(self, params: Params, copies: int) -> list[Decision]:
        layout, mine = self.layout, by_owner(self.layout.owners)
        sizes = [bytes_of(x) // max(copies, 1) for x in jax.tree.leaves(self.inner)]
        placed = self.places([Place(size, size, "") for size in sizes])
        rows = []
        held_by = members(self.inner, layout.owners, len(layout.params), params)
        for i, ((path, shape), cut) in enumerate(zip(held_by, layout.params, strict=True)):
            held = sum(placed[j].device_bytes for j in mine.get(i, ()))
            if layout.mesh is None or (cut is not None and cut.dim is None):
                where = _in_words(layout, cut)
            else:
                where = in_words(layout.share_specs[i])
            rows.append(Decision("zero", path, shape, where, held, layout.reasons[i]))
        return rows


def _unpad(cut: Cut, shape: tuple[int, ...]) -> Callable[[Any], Any]:
    return lambda x: cut.unpad(x, shape)


def _in_words(layout: Layout, cut: Cut | None) -> str:
    """How a leaf is divided over mapped axes."""
    if cut is None:
        return "whole"
    return "flat" if cut.dim is None else ", ".join(["-"] * cut.dim + list(layout.axes))


def _check_no_device_axis(x: Any, cut: Cut, shape: tuple[int, ...], layout: Layout) -> None:
    if x.ndim > max(len(shape), 1) and x.shape[0] == layout.shares:
        raise ValueError(
            message(
                "save",
                f"a leaf of the state has the device axis of pmap, got shape {tuple(x.shape)}",
                do="Pass jl.to_global(state)",
            )
        )
    padded = cut.waste or cut.dim is None
    if padded and math.prod(x.shape) != math.prod(cut.padded_shape(shape)):
        raise ValueError(
            message(
                "save",
                f"a padded leaf of the state is divided over other axes than {layout.axes[0]!r} too, "
                f"got shape {tuple(x.shape)}",
                do="Use zero(rule, mesh, axis) under jit for such parameters",
            )
        )


def _share_spec(layout: Layout, index: int, divided: Sequence[PartitionSpec]) -> PartitionSpec:
    """The spec of a leaf inside `shard_map`: like its parameter, and divided along the cut."""
    cut, owner = layout.state[index], layout.owners[index]
    rank = len(layout.shapes[index])
    own = divided[owner] if owner is not None and len(layout.params) == len(divided) else PartitionSpec()
    same = owner is not None and layout.shapes[index] == layout.param_shapes[owner]
    if cut is not None and not same and own != PartitionSpec():
        raise ValueError(
            message(
                "mapped_state_specs",
                f"a state leaf of shape {layout.shapes[index]} follows a parameter with {own}",
                allowed="leaves of the parameter's shape",
                do="Use zero(rule, mesh, axis) under jit",
            )
        )
    parts = entries(own, rank) if same else []
    if cut is None:
        return normal_spec(parts)
    if cut.dim is None:  # each device's run of its own part
        return normal_spec([(*(name for part in parts for name in part), *layout.axes)])
    parts = parts or [()] * (cut.dim + 1)
    parts[cut.dim] = (*parts[cut.dim], *layout.axes)
    return normal_spec(parts)


def _joined(x: Array, cut: Cut, shape: tuple[int, ...], mesh: Any) -> Array:
    """The shares that lie on devices, as one array."""
    spec = normal_spec([()] * (cut.dim or 0) + [mesh.axis_names])
    shares = [c.reshape(-1) if cut.dim is None else c for c in copies_of(x)]
    padded = jax.make_array_from_single_device_arrays(
        cut.padded_shape(shape), NamedSharding(mesh, spec), shares
    )
    if cut.dim is not None and not cut.waste:
        return padded
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(lambda s: cut.unpad(s, shape), out_shardings=everywhere)(padded)


def _divided(x: Any, cut: Cut, shape: tuple[int, ...], layout: Layout, like: Array) -> Array:
    """The inverse."""
    check_shape(x, shape)
    padded = cut.pad(jnp.asarray(x))
    length = cut.padded // layout.shares
    parts = [
        jax.device_put(jax.lax.slice_in_dim(padded, i * length, (i + 1) * length, axis=cut.dim or 0), d)
        for i, d in enumerate(devices_of(like))
    ]
    share = cut.share_shape(shape, layout.shares)
    return assembled([p.reshape(share) for p in parts], share)
