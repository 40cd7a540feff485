"""What one pass over a parameter's arrays computes: gradient, parameter and state in, the new ones out."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from .._compat import bind
from ..tracing.graph import Constant, Equation, Variable, variables
from ..tracing.primitives import known
from .codecs import CodecCall, codec_of

Order = tuple[int, ...]  # of scales' axes, as in `Encoded`


@dataclasses.dataclass(frozen=True, eq=False)
class Pass:
    """Equations that work element by element, or block by block, on arrays of one shape.

    Attributes:
      shape: of all arrays but scales.
      inputs: what is read: arrays of the shape, and the scales of codes of the shape.
      scalars: what is computed before, of shape ().
      equations: in their order; codecs are calls with a codec.
      results: what is written -> the variable that holds it.
      kinds: of each variable that is not a scalar: None for an array, for scales their order.
      types: of each variable.
      precomputed: inputs that are no inputs of the step, but computed before.
      repeats: is what it computes also needed before it, for norms of an update or the like?
    """

    shape: tuple[int, ...]
    inputs: tuple[Variable, ...]
    scalars: tuple[Variable, ...]
    equations: tuple[Equation, ...]
    results: Mapping[int, Variable]
    kinds: Mapping[Variable, Order | None]
    types: Mapping[Variable, Any]
    precomputed: frozenset[Variable] = frozenset()
    repeats: bool = False

    @property
    def size(self) -> int:
        """Elements of one array."""
        return math.prod(self.shape)

    def bytes_of(self, variable: Variable) -> int:
        """Of an array or of scales."""
        kind = self.types[variable]
        bits = 4 if str(kind.dtype) in ("int4", "uint4") else 8 * kind.dtype.itemsize
        return kind.size * bits // 8

    @functools.cached_property
    def has_blocks(self) -> bool:
        """Is an array encoded in blocks? All else XLA fuses by itself."""
        codecs = [codec_of(eqn.of) for eqn in self.equations]
        return any(codec is not None and codec.writes_blocks for codec in codecs)

    @functools.cached_property
    def key(self) -> Any:
        """Equal for passes that one function can run."""
        names = {v: n for n, v in enumerate((*self.inputs, *self.scalars))}

        def name(atom: Any) -> Any:
            if not isinstance(atom, Constant):
                return names[atom]
            value = np.asarray(atom.value)
            return str(value.dtype), value.shape, value.tobytes()

        steps = []
        for eqn in self.equations:
            operands = tuple(name(a) for a in eqn.inputs)
            names.update({v: len(names) + n for n, v in enumerate(eqn.outputs)})
            steps.append((eqn.of.primitive.name, _params_key(eqn.of), operands, len(eqn.outputs)))
        types = tuple(self.types[v] for v in (*self.inputs, *self.scalars))  # with sharding and all
        return self.shape, types, tuple(steps), tuple(name(v) for v in self.results.values())

    def computed(
        self,
        values: dict[Any, Any],
        wanted: Sequence[Any],
        run: Callable[[Equation, list[Any]], Sequence[Any]],
    ) -> list[Any]:
        """The values of variables, given those of others.

        Args:
          values: variable -> value; completed.
          wanted: variables and constants.
          run: (equation, its operands) -> its results.
        """

        def read(atom: Any) -> Any:
            if not isinstance(atom, Constant):
                return values[atom]
            x = atom.value
            return np.asarray(x) if hasattr(x, "__array__") and hasattr(x, "shape") else x  # of no mesh

        for eqn in self.needed(wanted, values):
            values.update(zip(eqn.outputs, run(eqn, [read(a) for a in eqn.inputs]), strict=True))
        return [read(a) for a in wanted]

    def needed(self, wanted: Sequence[Any], given: Any) -> list[Equation]:
        """The equations between variables that are given and those that are wanted, in their order."""
        open_ = {v for v in variables(wanted) if v not in given}
        found = []
        for eqn in reversed(self.equations):
            if any(v in open_ for v in eqn.outputs):
                found.append(eqn)
                open_.update(v for v in variables(eqn.inputs) if v not in given)
        return found[::-1]

    def whole(self, arrays: Sequence[Any], scalars: Sequence[Any]) -> list[Any]:
        """The results, all at once: what every other way is held against."""
        values = dict(zip((*self.inputs, *self.scalars), (*arrays, *scalars), strict=True))
        return self.computed(values, list(self.results.values()), lambda eqn, xs: bind(eqn.of, xs))

    def on_view(self, view: "View", eqn: Equation, operands: list[Any]) -> Sequence[Any]:
        """An equation on a part of its arrays.

        Args:
          view: which part, and how codecs work on it.
          eqn: one of the equations.
          operands: parts, and scalars.
        """
        codec = codec_of(eqn.of)
        if codec is not None:
            return view.call(codec, operands)
        name = eqn.of.primitive.name
        if name == "broadcast_in_dim":
            return [jnp.broadcast_to(operands[0], view.shape_of(self.kinds[eqn.outputs[0]]))]
        if name == "convert_element_type":  # its parameters name a mesh
            return [jax.lax.convert_element_type(operands[0], eqn.of.params["new_dtype"])]
        if known(eqn.of).handed:
            return view.handed(eqn.of, operands)
        return bind(eqn.of, operands, elsewhere=True)


class View(Protocol):
    """Which part of its arrays a pass is run on."""

    def shape_of(self, order: Order | None) -> tuple[int, ...]:
        """The shape of the part of an array, or of scales in an order."""
        ...

    def call(self, codec: CodecCall, operands: list[Any]) -> tuple[Any, ...]:
        """What a codec makes of parts."""
        ...

    def handed(self, equation: Any, operands: list[Any]) -> Sequence[Any]:
        """What an equation that hands its operands on makes of parts."""
        ...


def _params_key(equation: Any) -> Any:
    if codec_of(equation) is not None:
        return equation.params["name"]
    return tuple((k, v if _is_hashable(v) else repr(v)) for k, v in sorted(equation.params.items()))


def _is_hashable(x: Any) -> bool:
    try:
        hash(x)
    except TypeError:
        return False
    return True
