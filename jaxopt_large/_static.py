"""Static nodes of a state: plans that hold no arrays, and pass through whatever a state goes through."""

import dataclasses
import functools
import sys
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh


class StaticNode:
    """Base of a frozen dataclass (`eq=False`) that is registered with `jax.tree_util.register_static`.

    A jitted step hashes and compares these nodes at every call: the hash is kept, and equal nodes are almost
    always one object. They are copied by reference, pickled without it (a string's hash differs from one
    process to the next) and without devices, and Flax's serialization leaves them where they are.
    """

    def __post_init__(self) -> None:
        _tell_flax(type(self))

    @functools.cached_property
    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))  # pyrefly: ignore

    @functools.cached_property
    def _hash(self) -> int:
        return hash((type(self), self._values))

    def __hash__(self) -> int:
        _tell_flax(type(self))  # it may have been imported since
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(self) is not type(other) or not isinstance(other, StaticNode):
            return False
        return self._hash == other._hash and self._values == other._values

    def __copy__(self) -> "StaticNode":
        return self

    def __deepcopy__(self, memo: Any) -> "StaticNode":
        del memo
        return self

    def __reduce__(self) -> Any:
        values = tuple(_Devices.of(x) if isinstance(x, Mesh) else x for x in self._values)
        return _made, (type(self), values)


class _Devices(NamedTuple):
    """A mesh as it is pickled: devices belong to a process, their numbers do not."""

    ids: tuple[int, ...]
    shape: tuple[int, ...]
    names: tuple[str, ...]
    types: tuple[Any, ...]

    @classmethod
    def of(cls, mesh: Mesh) -> "_Devices":
        ids = tuple(int(d.id) for d in mesh.devices.flat)
        return cls(ids, mesh.devices.shape, mesh.axis_names, mesh.axis_types)

    def mesh(self) -> Any:
        """The same mesh; an abstract one where there are no such devices."""
        here = {d.id: d for d in jax.devices()}
        if not set(self.ids) <= here.keys():
            return AbstractMesh(self.shape, self.names, axis_types=self.types)
        devices = np.array([here[n] for n in self.ids], dtype=object).reshape(self.shape)
        return Mesh(devices, self.names, axis_types=self.types)


def _made(cls: Any, values: tuple[Any, ...]) -> Any:
    return cls(*(x.mesh() if isinstance(x, _Devices) else x for x in values))


_told: set[Any] = set()


def _tell_flax(cls: Any) -> None:
    """Lets Flax's serialization keep nodes of a class as they are in the target; Flax need not be there."""
    register = getattr(sys.modules.get("flax.serialization"), "register_serialization_state", None)
    if register is not None and cls not in _told:
        _told.add(cls)
        register(cls, lambda node: {}, lambda node, state: node, override=True)


# --- what optax puts in the place of parameters -------------------------------------------------------


class _Anything:
    """A leaf that stands for a static node not known yet: as a prefix it fits any."""

    def __repr__(self) -> str:
        return "anything"


ANYTHING: Any = _Anything()


def is_placeholder(params: Any) -> bool:
    """Is it what `optax.tree_map_params` gives to `init`, to see where the parameters' trees go?"""
    return type(params).__name__ == "_ParamsPlaceholder"
