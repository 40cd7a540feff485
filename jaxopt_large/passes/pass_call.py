"""A pass as one equation of a program: how it runs is decided, and traced, when a platform is compiled for.

`jax.lax.platform_dependent` would trace the ways of all platforms for every program.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from .loop import first_token

Way = Callable[..., Any]  # (arrays, scalars, token) -> results, token


def each(one: Callable[..., list[Any]]) -> Way:
    """(arrays, scalars) -> results of one leaf, as a way for several: one after another."""
    one = jax.jit(one)  # traced once for all

    def way(arrays: Any, scalars: Any, token: Any) -> tuple[list[list[Any]], Any]:
        numbers = [[x[k] if x.ndim else x for x in scalars] for k in range(len(arrays))]
        return [one(xs, own) for xs, own in zip(arrays, numbers, strict=True)], token

    return way


@dataclasses.dataclass(frozen=True, eq=False)
class PassCall:
    """A pass on some leaves at once.

    Attributes:
      whole: how it runs where nothing else is said, and what its derivatives are those of.
      ways: platform, as JAX names it -> how it runs there; each gives results of the types of `whole`'s.
    """

    whole: Way
    ways: Mapping[str, Way]

    def __call__(
        self, arrays: Sequence[Sequence[Any]], scalars: Sequence[Any], token: Any
    ) -> tuple[list[list[Any]], Any]:
        """The results for each leaf, and the ordering token of what comes after; None before the first."""
        if token is None and "cpu" in self.ways:
            token = first_token(arrays[0], [x[0] if x.ndim else x for x in scalars])
        args = (arrays, scalars, token)
        if not self.ways:
            return self.whole(*args)
        leaves, given = jax.tree.flatten(args)
        closed, made = jax.make_jaxpr(self.whole, return_shape=True)(*args)
        made = jax.tree.structure(made)
        return made.unflatten(_pass_p.bind(*leaves, call=_Flat(self, given, closed)))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class _Flat:
    """A call as functions of all its arrays, one after another."""

    call: PassCall
    given: Any
    closed: Any  # `whole`, traced

    def __repr__(self) -> str:
        return f"<{', '.join(self.call.ways)}>"

    def on(self, platform: str | None) -> Callable[..., list[Any]]:
        way = self.call.ways.get(platform or "")
        return jaxpr_as_fun(self.closed) if way is None else self._flat(way)

    def on_any(self, *leaves: Any) -> list[Any]:
        """With all ways traced."""
        ways = {platform: self._flat(way) for platform, way in self.call.ways.items()}
        return jax.lax.platform_dependent(*leaves, default=self._flat(self.call.whole), **ways)

    def _flat(self, way: Way) -> Callable[..., list[Any]]:
        return lambda *leaves: jax.tree.leaves(way(*self.given.unflatten(leaves)))


_pass_p = Primitive("jaxopt_large_pass")
_pass_p.multiple_results = True


@_pass_p.def_abstract_eval
def _types(*kinds: Any, call: _Flat) -> list[Any]:
    del kinds
    return list(call.closed.out_avals)


@_pass_p.def_impl
def _run(*leaves: Any, call: _Flat) -> list[Any]:
    return jax.jit(call.on(jax.default_backend()))(*leaves)


def _lower(platform: str | None) -> Callable[..., Any]:
    def rule(ctx: Any, *leaves: Any, call: _Flat) -> Any:
        return mlir.lower_fun(call.on(platform), multiple_results=True)(ctx, *leaves)

    return rule


mlir.register_lowering(_pass_p, _lower(None))
for _platform in ("cpu", "tpu", "cuda", "rocm"):
    mlir.register_lowering(_pass_p, _lower(_platform), platform=_platform)


def _batched(leaves: Sequence[Any], axes: Sequence[Any], *, call: _Flat) -> Any:
    made = jax.vmap(call.on_any, in_axes=tuple(axes))(*leaves)
    return made, [0] * len(made)


def _differentiated(primals: Sequence[Any], tangents: Sequence[Any], *, call: _Flat) -> Any:
    return jax.jvp(call.on(None), tuple(primals), tuple(ad.instantiate_zeros(t) for t in tangents))


batching.primitive_batchers[_pass_p] = _batched
ad.primitive_jvps[_pass_p] = _differentiated
