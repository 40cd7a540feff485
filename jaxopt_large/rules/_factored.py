"""Second moments kept as sums along two axes of a leaf, which ones its path may say."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from .._errors import message
from .._numerics import abs_square, bounded, divide, ema, plus, times
from .._paths import first_match
from .._types import Updates
from ..leafwise import Stage, along, count, shape_of, shaped, size_of, sum_along

Shape = tuple[int, ...]


class FactoredState(NamedTuple):
    """State of factored second moments."""

    count: Int[Array, ""]  # steps taken; None where the decay is constant
    v_row: Updates  # means along the longer axis, float32; of shape (1,) where a leaf is whole
    v_col: Updates  # means along the other, float32; of shape (1,) where a leaf is whole
    v: Updates  # mean squares of leaves that are whole, float32; of shape (1,) elsewhere


class Pair(NamedTuple):
    """The two axes along which a leaf is factored."""

    row: int  # sums along it are the field without it
    col: int


class Factoring:
    """Which leaves are factored, along which axes.

    Attributes:
      who: the rule's name, for errors.
      axes: glob -> the two axes, or none to keep the whole; the first match wins.
      smallest: an axis of fewer elements is not factored.
    """

    def __init__(self, who: str, axes: Mapping[str, Any] | None, smallest: int = 1):
        self.who, self.smallest = who, smallest
        self.axes = {glob: tuple(pair) for glob, pair in (axes or {}).items()}
        for glob, pair in self.axes.items():
            if len(pair) not in (0, 2):
                wrong = f"axes of {glob!r} are no pair, got {pair!r}"
                raise ValueError(message(who, wrong, allowed="two axes, or () to keep the whole"))

    def told(self, path: str) -> Any:
        """What a leaf's path says: a pair of axes, () for none, or None where it says nothing."""
        glob = first_match(list(self.axes), path)
        return None if glob is None else self.axes[glob]

    def pair(self, shape: Shape, told: Any) -> Pair | None:
        """The axes of a leaf of this shape; None where it is kept whole."""
        if told == () or len(shape) < 2:
            return None
        axes = (-2, -1) if told is None else told
        one, other = sorted(inside(self.who, axes, shape))
        if told is None and min(shape[one], shape[other]) < self.smallest:
            return None
        # without its longer axis first, as optax has them
        return Pair(other, one) if shape[other] >= shape[one] else Pair(one, other)

    def row_shape(self, shape: Shape, path: str) -> Shape:
        return self._without(shape, path, 0)

    def col_shape(self, shape: Shape, path: str) -> Shape:
        return self._without(shape, path, 1)

    def whole_shape(self, shape: Shape, path: str) -> Shape:
        return shape if self.pair(shape, self.told(path)) is None else (1,)

    def _without(self, shape: Shape, path: str, which: int) -> Shape:
        pair = self.pair(shape, self.told(path))
        if pair is None:
            return (1,)
        return tuple(n for d, n in enumerate(shape) if d != pair[which])

    def means(self, square: Array, told: Any) -> tuple[Array, ...]:
        """What a leaf, or the part that is here, adds to its means along both axes; of a whole one none."""
        shape = shape_of(square)
        pair = self.pair(shape, told)
        return () if pair is None else tuple(sum_along(square, (axis,)) / shape[axis] for axis in pair)

    def rooted(self, row: Array, col: Array, x: Array, told: Any) -> Array:
        r"""One over the root of the product of both means over their common mean, beside each element."""
        pair: Any = self.pair(shape_of(x), told)
        across = pair.col - (pair.row < pair.col)  # the other axis, in the field without the first
        rooted = [inverse(jnp.sqrt(each)) for each in (row, col)]
        mean = jnp.sqrt(jnp.mean(row, axis=across, keepdims=True))
        return along(rooted[0] * mean, (pair.row,), x) * along(rooted[1], (pair.col,), x)


def factored_rms(ways: Factoring, eps: Any, decay: Any) -> Stage:
    """Divides by the root of a factored mean square.

    Args:
      ways: which leaves are factored.
      eps: beside the squares.
      decay: of the means: a number, or a function of how many steps have been taken.
    """
    constant = None if callable(decay) else decay

    def shared(kept: FactoredState) -> Any:
        return decay(kept.count) if constant is None else None

    def measure(shared: Any, g: Array, p: Any, kept: FactoredState, place: Any = None) -> tuple[Array, ...]:
        del shared, p, kept
        return ways.means(abs_square(bounded(g, size_of(g))), place)

    def step(
        shared: Any, g: Array, p: Any, kept: FactoredState, means: tuple[Array, ...], place: Any = None
    ) -> tuple[Array, Any]:
        del p
        g, b = bounded(g, size_of(g)), shared if constant is None else constant
        if not means:
            v = ema(kept.v, plus(abs_square(g), eps), b)
            return times(inverse(jnp.sqrt(v)), g), kept._replace(v=v)
        row, col = (
            ema(old, plus(new, eps), b) for old, new in zip((kept.v_row, kept.v_col), means, strict=True)
        )
        return times(ways.rooted(row, col, g, place), g), kept._replace(v_row=row, v_col=col)

    taken: Any = count() if constant is None else None
    state = FactoredState(taken, *map(by_path, (ways.row_shape, ways.col_shape, ways.whole_shape)))
    return Stage(step, state, shared, measure, needs="axes", by_path=ways.told)


def inside(who: str, axes: Sequence[int], shape: Shape) -> tuple[int, ...]:
    """Axes of a leaf, counted from its beginning.

    Raises:
      ValueError: one is outside, or there twice.
    """
    found = tuple(axis % len(shape) for axis in axes if -len(shape) <= axis < len(shape))
    if len(set(found)) < len(axes):
        wrong = f"axes {tuple(axes)!r} do not fit a leaf of shape {shape}"
        raise ValueError(message(who, wrong, allowed="axes that it has, each once"))
    return found


def inverse(x: Array) -> Array:
    """1 / x, and 0 where x is 0."""
    return divide(jnp.ones((), x.dtype), x)


def by_path(shape: Callable[[Shape, str], Shape]) -> Any:
    """A field of zeros whose shape depends on the leaf's path."""
    return shaped(shape, real=True, by_path=True)
