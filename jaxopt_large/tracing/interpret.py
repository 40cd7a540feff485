"""Running a traced function with other equations in the place of some."""

from collections.abc import Callable, Sequence
from typing import Any

from .calls import callee


def interpreted(
    closed: Any, args: Sequence[Any], run: Callable[[Any, list[Any]], Sequence[Any]]
) -> list[Any]:
    """The results of a closed jaxpr, calls inlined.

    Args:
      closed: the function.
      args: its arguments.
      run: (equation, operands) -> its results.
    """
    return _through(closed.jaxpr, closed.consts, args, run)


def _through(jaxpr: Any, constants: Sequence[Any], args: Sequence[Any], run: Callable[..., Any]) -> list[Any]:
    values = dict(zip(jaxpr.invars, args, strict=True)) | dict(zip(jaxpr.constvars, constants, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if hasattr(atom, "val") else values[atom]

    for equation in jaxpr.eqns:
        operands, inner = [read(a) for a in equation.invars], callee(equation)
        if inner is None:
            made = run(equation, operands)
        else:
            made = _through(inner.jaxpr, inner.constants, operands, run)
        values.update(zip(equation.outvars, made, strict=True))
    return [read(a) for a in jaxpr.outvars]


def primitives_of(closed: Any) -> set[str]:
    """The names of the primitives in a closed jaxpr, those in calls included."""
    found: set[str] = set()
    pending = [closed.jaxpr]
    while pending:
        for equation in pending.pop().eqns:
            inner = callee(equation)
            if inner is None:
                found.add(equation.primitive.name)
            else:
                pending.append(inner.jaxpr)
    return found
