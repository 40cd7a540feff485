"""What the state of a wrapper answers for itself, and walks over the wrappers in a state.

A wrapper that keeps the arrays of others in another form, or decides where they are, gives its state the
class `StateNode` beside a NamedTuple. Checkpoints, shardings and explanations ask the nodes of a state; they
know no wrapper.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from ._owners import Owners
from ._paths import leaf_paths
from ._types import Params


class Decision(NamedTuple):
    """What a wrapper does with the state of one parameter.

    Attributes:
      wrapper: "zero", "offload" or "stored"; of an array that none of them holds, the transform that
        keeps it, as `StateRow.rule` has it.
      path: the parameter's.
      shape: the parameter's; for "stored" and where there is no wrapper, of the leaf of the state.
      where: the mesh axes of each dimension, "whole", "flat", "host" or "device"; for "stored", the
        field and its format; where there is no wrapper, the field and its dtype.
      bytes: of its state, on one device; for "stored" and where there is no wrapper, of the leaf.
      reason: why.
    """

    wrapper: str
    path: str
    shape: tuple[int, ...]
    where: str
    bytes: int
    reason: str


class Place(NamedTuple):
    """Where one array of a state is.

    Attributes:
      bytes: of the whole array; inside mapped axes, of one device's.
      device_bytes: on one device.
      where: the mesh axes of each dimension or "whole", "flat", "host"; "" where no wrapper places it.
    """

    bytes: int
    device_bytes: int
    where: str


class DiskForm(Protocol):
    """The form in which arrays are written, as values or as shapes, and the way back."""

    def of(self, tree: Any) -> Any:
        """A tree that may hold nodes, in this form."""
        ...

    def back(self, values: Any, like: Any) -> Any:
        """The inverse of `of`: values as `like` has them."""
        ...

    def without_padding(self, x: Any, unpad: Callable[[Any], Any], shape: tuple[int, ...]) -> Any:
        """An array in its own shape."""
        ...

    def with_padding(self, x: Any, pad: Callable[[Any], Any], like: Any) -> Any:
        """The inverse."""
        ...

    def summed(self, x: Any) -> Any:
        """[devices, ...] -> the sum, [1, ...]."""
        ...

    def spread(self, x: Any, like: Any) -> Any:
        """[1, ...] -> [devices, ...], of which `x` is the sum."""
        ...


class DeviceForm(Protocol):
    """Global arrays in the place of those with a leading device axis, as under `pmap`, and the way back."""

    def of(self, tree: Any) -> Any:
        """A tree that may hold nodes, in this form."""
        ...

    def back(self, values: Any, like: Any) -> Any:
        """The inverse of `of`: values as `like` has them."""
        ...

    def mesh_of(self, x: Any) -> Any:
        """The mesh over the devices of an array."""
        ...

    def summed(self, x: Any) -> Any:
        """[devices, 1, ...] -> the sum, [1, ...]."""
        ...

    def spread(self, x: Any, like: Any) -> Any:
        """[1, ...] -> [devices, 1, ...], of which `x` is the sum."""
        ...


class StateNode:
    """Base of the states of wrappers, beside a NamedTuple.

    A node overrides what it has an answer to; walks pass through nodes that have none.

    Attributes:
      own: the fields that are the wrapper's own, and not the wrapped rule's.
    """

    __slots__ = ()
    own: ClassVar[tuple[str, ...]] = ()

    def to_disk(self, form: DiskForm) -> Any:
        """What the rule without the wrapper would hold."""
        raise NotImplementedError

    def from_disk(self, values: Any, form: DiskForm) -> Any:
        """The inverse: a node like this one, of values that were read."""
        raise NotImplementedError

    def to_global(self, form: DeviceForm) -> Any:
        """What the rule without the wrapper would hold, as global arrays."""
        raise NotImplementedError

    def to_per_device(self, values: Any, form: DeviceForm) -> Any:
        """The inverse: a node like this one, of global values."""
        raise NotImplementedError

    def mesh(self) -> Any:
        """The mesh that its arrays are divided over; None inside mapped axes."""
        raise NotImplementedError

    def shardings(self) -> Any:
        """A node of shardings, one for each array."""
        raise NotImplementedError

    def in_memory(self) -> Any:
        """Of a node of shardings: the same, with the memory that each array is in."""
        raise NotImplementedError

    def mapped_specs(self, outside: Callable[..., Any], divided: Sequence[Any], copies: int) -> Any:
        """A node of specs, one for each array as it is inside `shard_map`.

        Args:
          outside: (path in the node, shape) -> the spec of an array that no wrapper divides.
          divided: the specs of the parameters.
          copies: how many axes the shapes have in front.
        """
        raise NotImplementedError

    def gradient_shardings(self, parameters: int) -> list[Any] | None:
        """Where it keeps its share of each gradient, if it is around that many parameters."""
        raise NotImplementedError

    def gathered(self, new: list[Any], old: list[Any]) -> list[Any]:
        """New parameters, divided as it keeps gradients, in the layout of the old."""
        raise NotImplementedError

    def reduced_gradients(self, axis_name: str | None) -> int:
        """Of how many parameters it reduces the gradients over a mapped axis."""
        raise NotImplementedError

    def places(self, inner: list[Place]) -> list[Place]:
        """Where each of its arrays is, given what is known without it."""
        raise NotImplementedError

    def decisions(self, params: Params, copies: int) -> list[Decision]:
        """What it does with each parameter's state; of each of its arrays there are `copies`."""
        raise NotImplementedError

    def grouped(self) -> dict[str, tuple[str, Any]]:
        """Path of each parameter -> its group, and the state of that group's rule."""
        raise NotImplementedError


def is_past(x: Any) -> bool:
    """Is it a state of before, that is kept and does not count?"""
    return getattr(x, "is_past", False) is True


def answers(question: Callable[..., Any]) -> Callable[[Any], bool]:
    """Is a thing a node that has an answer to one of the methods of `StateNode`?"""

    def is_one(x: Any) -> bool:
        return isinstance(x, StateNode) and getattr(type(x), question.__name__) is not question

    return is_one


def map_nodes(
    question: Callable[..., Any], node: Callable[..., Any], leaf: Callable[..., Any], tree: Any, *rest: Any
) -> Any:
    """A tree with `node` of each outermost node that answers a question, and `leaf` of all other leaves.

    Args:
      question: a method of `StateNode`.
      node: of a node, and of what stands in its place in `rest`.
      leaf: likewise of a leaf.
      tree: any.
      *rest: trees with a part in the place of each such node and leaf of `tree`.
    """
    is_one = answers(question)
    found, treedef = jax.tree.flatten(tree, is_leaf=is_one)
    others = [treedef.flatten_up_to(r) for r in rest]
    return treedef.unflatten(
        [(node if is_one(x) else leaf)(x, *ys) for x, *ys in zip(found, *others, strict=True)]
    )


def nodes_in(tree: Any, question: Callable[..., Any] | None = None) -> Iterator[tuple[Any, int, int]]:
    """Each node, outer before inner, and from which leaf of the tree to which it reaches.

    Args:
      tree: any.
      question: a method of `StateNode`: only nodes that answer it.
    """
    asked = None if question is None else answers(question)
    at = 0
    for x in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, StateNode)):
        if not isinstance(x, StateNode):
            at += 1
            continue
        count = len(jax.tree.leaves(x))
        if asked is None or asked(x):
            yield x, at, at + count
        for part in x:  # type: ignore[attr-defined]
            yield from ((node, at + a, at + b) for node, a, b in nodes_in(part, question))
            at += len(jax.tree.leaves(part))


def own_arrays(tree: Any) -> list[bool]:
    """For each leaf, is it a wrapper's own?"""
    found = [False] * len(jax.tree.leaves(tree))
    for node, at, _ in nodes_in(tree):
        for name, part in zip(node._fields, node, strict=True):
            count = len(jax.tree.leaves(part))
            if name in node.own:
                found[at : at + count] = [True] * count
            at += count
    return found


def members(inner: Any, owners: Sequence[int | None], count: int, params: Params) -> list[tuple[str, Any]]:
    """Path and shape of each parameter that a wrapper holds; it may stand around a part of them.

    Args:
      inner: the wrapped state.
      owners: for each of its leaves, the parameter that it belongs to, as the wrapper counts them.
      count: how many parameters the wrapper holds.
      params: all parameters.
    """
    paths, leaves = leaf_paths(params), jax.tree.leaves(params)
    if count == len(paths):
        return [(path, tuple(jnp.shape(x))) for path, x in zip(paths, leaves, strict=True)]
    keys = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    index, found = Owners(keys), [(f"#{i}", tuple[int, ...]()) for i in range(count)]
    for (path, _), owner in zip(jax.tree_util.tree_flatten_with_path(inner)[0], owners, strict=True):
        number = None if owner is None else index.first(path)
        if owner is not None and number is not None:
            found[owner] = paths[number], tuple(jnp.shape(leaves[number]))
    return found


def by_owner(owners: Sequence[int | None]) -> dict[int | None, list[int]]:
    """Parameter -> the numbers of the leaves that belong to it."""
    found: dict[int | None, list[int]] = {}
    for j, owner in enumerate(owners):
        found.setdefault(owner, []).append(j)
    return found


def bits_of(x: Any) -> int:
    """Of one element."""
    return 4 if str(x.dtype) in ("int4", "uint4") else x.dtype.itemsize * 8


def bytes_of(x: Any) -> int:
    """Of an array, a shape or a number."""
    x = x if hasattr(x, "dtype") else jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x))
    return x.size * bits_of(x) // 8
