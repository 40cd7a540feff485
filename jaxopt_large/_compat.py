"""What differs between JAX 0.7.2 and the newest, in one place."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

try:
    from jax import reshard as _reshard  # JAX >= 0.8
except ImportError:
    from jax.sharding import reshard as _reshard


def reshard(x: Any, sharding: Any) -> Any:
    """Moves `x` to `sharding` under Explicit mesh axes."""
    return _reshard(x, sharding)


def constrained(x: Any, sharding: Any) -> Any:
    """`x` with a sharding, whether the axes of its mesh are Auto or Explicit."""
    if AxisType.Explicit in getattr(getattr(sharding, "mesh", None), "axis_types", ()):
        return reshard(x, sharding)
    return jax.lax.with_sharding_constraint(x, sharding)


def constrained_on(mesh: Any, x: Any, spec: PartitionSpec) -> Any:
    """`x` with a spec on a mesh, also where some of its axes are mapped; there not by JAX before 0.10."""
    context = jax.sharding.get_abstract_mesh()
    if context.empty:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
    if jax.__version_info__ < (0, 10):  # compiles, and cannot read what the compiler says of it
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(context, spec))


def placed(x: Any, like: Any, sharding: Any) -> Any:
    """A new array where it is to be, so far as that can be said: not under Auto axes inside `jit`.

    Args:
      x: the array.
      like: an array that it is made for.
      sharding: where it is to be.
    """
    if not isinstance(like, jax.core.Tracer):
        return jax.device_put(x, sharding)
    return x if explicit_sharding(like) is None else reshard(x, sharding)


def make_mesh(shape: tuple[int, ...], names: tuple[str, ...], *, devices: Any = None) -> jax.sharding.Mesh:
    """A mesh with Auto axes (JAX >= 0.9 makes Explicit ones unless told)."""
    return jax.make_mesh(shape, names, devices=devices, axis_types=(AxisType.Auto,) * len(names))


def axis_size(axis_name: str) -> int:
    """The size of a mapped axis, as a Python number."""
    if hasattr(jax.lax, "axis_size"):
        return jax.lax.axis_size(axis_name)
    return jax.lax.psum(1, axis_name)


def auto_axes(function: Callable[..., Any], mesh: Any, out_specs: Any) -> Callable[..., Any]:
    """`function` traced with all mesh axes Auto, to be called where they are Explicit.

    Args:
      function: of arrays only; shardings inside it are those of `current_mesh()`.
      mesh: concrete or abstract.
      out_specs: a tree of specs like the function's result.
    """

    def call(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(getattr(mesh, "abstract_mesh", mesh)):
            return jax.sharding.auto_axes(function, axes=mesh.axis_names, out_sharding=out_specs)(*args)

    return call


def shard_map(function: Callable[..., Any], mesh: Any, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`jax.shard_map` over all axes of a mesh, without types of what varies.

    Where a mesh is in use, as under `auto_axes`, that one counts: it has the same axes, of other types.
    """
    around = jax.sharding.get_abstract_mesh()

    def call(*args: Any) -> Any:
        def moved(spec: Any, x: Any) -> Any:
            at = explicit_sharding(x)
            return x if at is None else reshard(x, jax.sharding.NamedSharding(at.mesh, spec))

        is_spec = lambda s: isinstance(s, jax.sharding.PartitionSpec)  # noqa: E731
        args = tuple(
            jax.tree.map(lambda s, xs: jax.tree.map(lambda x: moved(s, x), xs), spec, arg, is_leaf=is_spec)
            for spec, arg in zip(in_specs, args, strict=True)
        )
        used = mesh if around.empty else None
        return jax.shard_map(function, mesh=used, in_specs=in_specs, out_specs=out_specs, check_vma=False)(
            *args
        )

    return call


def explicit_sharding(x: Any) -> Any:
    """The sharding in an array's type where its mesh has Explicit axes; None elsewhere."""
    sharding = getattr(jax.typeof(x), "sharding", None)
    axes = getattr(getattr(sharding, "mesh", None), "axis_types", None) or ()
    return sharding if AxisType.Explicit in axes else None


def typed_as(x: Any, like: Any) -> Any:
    """`x` divided as `like` is, where its mesh has Explicit axes: the two types are then alike."""
    sharding = explicit_sharding(like)
    return x if sharding is None or jax.typeof(x).sharding == sharding else reshard(x, sharding)


def all_gather_invariant(x: Any, axis_name: str, *, axis: int) -> Any:
    """All shares joined along `axis`; typed as equal on all devices where `shard_map` keeps types."""
    if hasattr(jax.lax, "all_gather_invariant"):
        return jax.lax.all_gather_invariant(x, axis_name, axis=axis, tiled=True)
    if not varies(jax.lax.axis_index(axis_name), axis_name):  # nothing is typed: pmap, check_vma=False
        return jax.lax.all_gather(x, axis_name, axis=axis, tiled=True)
    return jax.lax.all_gather(as_varying(x, axis_name), axis_name, axis=axis, tiled=True, to="invarying")


def varies(x: Any, axis_name: str) -> bool:
    """Is `x` typed as different on the devices of a mapped axis?"""
    return axis_name in varying_axes(x)


def varying_axes(x: Any) -> Any:
    """The mapped axes along which an array, or the type of one, is typed as different."""
    is_type = not hasattr(x, "aval") and hasattr(x, "weak_type")
    kind: Any = x if is_type or isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x)
    kind = getattr(kind, "mat", None) or getattr(kind, "manual_axis_type", None) or kind
    return getattr(kind, "varying", None) or getattr(kind, "vma", None) or ()


def like_varying(x: Any, like: Any) -> Any:
    """`x` typed as different on the devices of all mapped axes along which `like` is."""
    for axis_name in varying_axes(like):
        x = as_varying(x, axis_name)
    return x


def as_varying(x: Any, axis_name: str) -> Any:
    """`x` typed as different on the devices of a mapped axis, where types are kept."""
    if varies(x, axis_name) or not varies(jax.lax.axis_index(axis_name), axis_name):
        return x
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(x, axis_name, to="varying")
    return getattr(jax.lax, "pvary")(x, axis_name)  # noqa: B009 - JAX before 0.8


def to_host(x: Any) -> Any:
    """Moves an array, traced or not, to the host's pinned memory; its sharding stays."""
    return jax.device_put(x, jax.memory.Space.Host)


def to_device(x: Any) -> Any:
    """The inverse of `to_host`."""
    return jax.device_put(x, jax.memory.Space.Device)


def bind(equation: Any, values: list[Any], *, elsewhere: bool = False) -> list[Any]:
    """The results of one equation of a jaxpr for the given operands.

    Args:
      equation: of any jaxpr.
      values: its operands.
      elsewhere: are they arrays of another mesh context than the equation was traced in?
    """
    found = equation.primitive.get_bind_params(equation.params)
    functions, params = found if isinstance(found, tuple) else ((), found)  # JAX before 0.8 has a pair
    if elsewhere and getattr(params.get("sharding"), "mesh", None) is not None:  # of the other mesh
        params = {**params, "sharding": None}
    with contextlib.nullcontext() if elsewhere else equation.ctx.manager:
        made = equation.primitive.bind(*functions, *values, **params)
    return list(made) if equation.primitive.multiple_results else [made]


def per_device_sharding(shape: tuple[int, ...], devices: list[Any]) -> Any:
    """How `pmap` lays out an array with a leading device axis."""
    if hasattr(jax.sharding, "PmapSharding"):  # JAX before 0.10
        return getattr(jax.sharding, "PmapSharding").default(shape, 0, devices)  # noqa: B009
    mesh = make_mesh((len(devices),), ("devices",), devices=devices)
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("devices"))
