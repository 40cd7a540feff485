"""One function, written differently for some platforms: chosen, and traced, when a platform is compiled for.

`jax.lax.platform_dependent` traces the ways of all platforms for every program.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from .propagate import Lattice, has_inside, propagated

_PLATFORMS = ("cpu", "tpu", "cuda", "rocm")  # as JAX names them


def by_platform(default: Callable[..., Any], ways: Mapping[str, Callable[..., Any]], *args: Any) -> Any:
    """`default(*args)`, in another way on some platforms.

    Args:
      default: what runs where nothing else is said, and what derivatives are those of.
      ways: platform, as JAX names it -> another function; its results have the types of the default's.
      *args: trees of arrays. The functions must not close over traced ones.
    """
    leaves, given = jax.tree.flatten(args)
    if not any(isinstance(x, jax.core.Tracer) for x in leaves):
        return ways.get(_platform_of(leaves), default)(*args)
    closed, made = jax.make_jaxpr(default, return_shape=True)(*args)
    flat = _Ways(default, ways, given)
    return jax.tree.structure(made).unflatten(_choice_p.bind(*leaves, jaxpr=closed, ways=flat))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class _Ways:
    """Functions of all arrays, one after another."""

    default: Callable[..., Any]
    ways: Mapping[str, Callable[..., Any]]
    given: Any

    def __repr__(self) -> str:
        return f"<{', '.join(self.ways)}>"

    def on(self, platform: str, closed: Any) -> Callable[..., list[Any]]:
        way = self.ways.get(platform)
        return jaxpr_as_fun(closed) if way is None else self._flat(way)

    def on_any(self, *leaves: Any) -> list[Any]:
        """With all ways traced."""
        ways = {platform: self._flat(way) for platform, way in self.ways.items()}
        return jax.lax.platform_dependent(*leaves, default=self._flat(self.default), **ways)

    def _flat(self, way: Callable[..., Any]) -> Callable[..., list[Any]]:
        return lambda *leaves: jax.tree.leaves(way(*self.given.unflatten(leaves)))


# the parameter `jaxpr` is the default, traced: whoever reads a program finds there what the equation does
_choice_p = Primitive("jaxopt_large_by_platform")
_choice_p.multiple_results = True


@_choice_p.def_abstract_eval
def _types(*kinds: Any, jaxpr: Any, ways: _Ways) -> list[Any]:
    del kinds, ways
    return list(jaxpr.out_avals)


@_choice_p.def_impl
def _run(*leaves: Any, jaxpr: Any, ways: _Ways) -> list[Any]:
    return ways.on(_platform_of(leaves), jaxpr)(*leaves)


def _platform_of(leaves: Sequence[Any]) -> str:
    """The platform that arrays are on, as JAX names it when it compiles."""
    device = next((next(iter(x.devices())) for x in leaves if isinstance(x, jax.Array)), jax.devices()[0])
    if device.platform != "gpu":
        return device.platform
    return "rocm" if "rocm" in device.client.platform_version.lower() else "cuda"


def _lower(platform: str) -> Callable[..., Any]:
    def rule(ctx: Any, *leaves: Any, jaxpr: Any, ways: _Ways) -> Any:
        return mlir.lower_fun(ways.on(platform, jaxpr), multiple_results=True)(ctx, *leaves)

    return rule


mlir.register_lowering(_choice_p, _lower(""))
for _platform in _PLATFORMS:
    mlir.register_lowering(_choice_p, _lower(_platform), platform=_platform)


class _Depends(Lattice[bool]):
    """The lattice of what depends on some of the inputs."""

    def of_constant(self, value: Any) -> bool:
        del value
        return False

    def of_equation(self, equation: Any, operands: list[bool], around: Sequence[Any]) -> list[bool] | None:
        del around
        return None if has_inside(equation) else [any(operands)] * len(equation.outvars)

    def joined(self, one: bool, other: bool) -> bool:
        return one or other

    def decided(self, choice: bool, results: list[bool]) -> list[bool]:
        return [choice or x for x in results]


def _batched(axis: Any, leaves: Sequence[Any], axes: Sequence[Any], *, jaxpr: Any, ways: _Ways) -> Any:
    """Results that depend on nothing batched stay one for all: ordering tokens, say."""
    axes = tuple(axes)  # None for what is not mapped over
    depends = propagated(jaxpr, [a is not None for a in axes], _Depends())
    out_axes = [0 if x else None for x in depends]
    mapped = jax.vmap(
        ways.on_any, axes, out_axes, axis_size=axis.size, spmd_axis_name=getattr(axis, "spmd_name", None)
    )
    return mapped(*leaves), out_axes


def _differentiated(primals: Sequence[Any], tangents: Sequence[Any], *, jaxpr: Any, ways: _Ways) -> Any:
    del ways
    return jax.jvp(jaxpr_as_fun(jaxpr), tuple(primals), tuple(ad.instantiate_zeros(t) for t in tangents))


batching.fancy_primitive_batchers[_choice_p] = _batched
ad.primitive_jvps[_choice_p] = _differentiated
