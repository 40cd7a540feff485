"""A pass layer by layer: arrays stacked along a first axis, some of them in the memory of the host."""

from collections.abc import Container, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._compat import bind, to_device, to_host
from .codecs import codec_of
from .loop import Hold
from .passes import Pass
from .windows import WindowView


class _PlacedLayer(WindowView):
    def handed(self, equation: Any, operands: list[Any]) -> Sequence[Any]:
        """Constraints and barriers hold for a layer too: it is placed and rounded as the whole is."""
        if equation.primitive.name in ("sharding_constraint", "optimization_barrier"):
            return bind(equation, operands)
        return operands


def has_layers(pass_: Pass) -> bool:
    """Can a pass be taken layer by layer, with the same bits?"""
    constraints = [e.of for e in pass_.equations if e.of.primitive.name == "sharding_constraint"]
    first = [getattr(e.params["sharding"], "spec", (None,))[:1] for e in constraints]
    if not pass_.shape or 0 in pass_.shape:
        return False
    if any(codec_of(e.of) is not None for e in pass_.equations):
        return False  # codecs would be rounded otherwise than in the whole, in the last bit
    return not any(any(spec) for spec in first)  # nor may the axis of the layers be divided


def layer_by_layer(
    pass_: Pass,
    holds: Sequence[Hold],
    arrays: Sequence[Any],
    scalars: Sequence[Any],
    inputs_on_host: Container[int] = (),
    results_on_host: Container[int] = (),
    *,
    bases: tuple[Any, ...] | None = None,
) -> list[Any]:
    """The results of a pass, of which one layer at a time is on the device.

    Args:
      pass_: the equations.
      holds: for each result, the input in whose place it comes.
      arrays: the inputs.
      scalars: what is computed before.
      inputs_on_host: the numbers of the inputs in the host's memory.
      results_on_host: the numbers of the results that belong there.
      bases: of one device's part of arrays, where it begins in them: it is not placed further.
    """
    wanted = list(pass_.results.values())
    size = (1, *pass_.shape[1:])
    in_place = {hold.inputs[0]: k for k, hold in enumerate(holds) if hold.inputs}

    def one(index: Any, held: list[Any]) -> list[Any]:
        kind = _PlacedLayer if bases is None else WindowView
        view = kind((index, *(np.int32(0),) * (len(size) - 1)), size, bases or ())
        given = [held[in_place[n]] if n in in_place else x for n, x in enumerate(arrays)]
        layers = [view.taken(x, pass_.kinds[v]) for x, v in zip(given, pass_.inputs, strict=True)]
        layers = [to_device(x) if n in inputs_on_host else x for n, x in enumerate(layers)]
        # apart from the loop's own work, a layer is rounded as the whole is
        layers = jax.lax.optimization_barrier(layers)
        values = dict(zip((*pass_.inputs, *pass_.scalars), (*layers, *scalars), strict=True))
        made = pass_.computed(values, wanted, lambda eqn, xs: pass_.on_view(view, eqn, xs))
        made = jax.lax.optimization_barrier(made)
        made = [to_host(x) if k in results_on_host else x for k, x in enumerate(made)]
        return [view.put(x, y, pass_.kinds[v]) for x, y, v in zip(held, made, wanted, strict=True)]

    def begun(k: int, v: Any) -> Any:
        inputs = holds[k].inputs
        x = arrays[inputs[0]] if inputs else jnp.zeros(pass_.types[v].shape, pass_.types[v].dtype)
        return to_host(x) if k in results_on_host else x  # it may not be there yet, in the first step

    held = [begun(k, v) for k, v in enumerate(wanted)]
    return jax.lax.fori_loop(0, pass_.shape[0], one, held)
