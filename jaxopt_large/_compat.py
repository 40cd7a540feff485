"""What differs between JAX 0.7.2 and the newest, in one place."""

from typing import Any

import jax
from jax.sharding import AxisType

try:
    from jax import reshard as _reshard  # JAX >= 0.8
except ImportError:
    from jax.sharding import reshard as _reshard


def reshard(x: Any, sharding: Any) -> Any:
    """Moves `x` to `sharding` under Explicit mesh axes."""
    return _reshard(x, sharding)


def make_mesh(shape: tuple[int, ...], names: tuple[str, ...], *, devices: Any = None) -> jax.sharding.Mesh:
    """A mesh with Auto axes (JAX >= 0.9 makes Explicit ones unless told)."""
    return jax.make_mesh(shape, names, devices=devices, axis_types=(AxisType.Auto,) * len(names))


def axis_size(axis_name: str) -> int:
    """The size of a mapped axis, as a Python number."""
    if hasattr(jax.lax, "axis_size"):
        return jax.lax.axis_size(axis_name)
    return jax.lax.psum(1, axis_name)
