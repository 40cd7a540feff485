"""A pass on some leaves at once, by the way of the platform that is compiled for."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from ..tracing.by_platform import by_platform
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
        if not self.ways:
            return self.whole(arrays, scalars, token)
        return by_platform(self.whole, self.ways, arrays, scalars, token)
