"""What follows for the results of a traced function from what is known of its inputs.

One forward pass over the equations, whatever the number of values: each carries what is known of it. What
can be known, and what each primitive makes of it, a `Lattice` says; calls, branches and loops are here.
"""

from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from .calls import callee

V = TypeVar("V")


class Lattice(Protocol[V]):
    """What can be known of a value, ordered: joining loses knowledge, and ends."""

    def of_constant(self, value: Any) -> V:
        """What is known of a constant or a literal."""
        ...

    def of_equation(self, equation: Any, operands: list[V], around: Sequence[Any]) -> list[V] | None:
        """What is known of an equation's results.

        Args:
          equation: of a jaxpr.
          operands: what is known of its operands.
          around: the calls, branches and loops that it stands in, the outermost first.

        Returns:
          None for the default: of calls, branches and loops what their functions tell.
        """
        ...

    def refined(self, equation: Any, operands: list[V], results: list[V], fixed: list[bool]) -> list[V]:
        """Results of which an equation's operands tell more; `fixed` says which operands are constants."""
        del equation, operands, fixed
        return results

    def joined(self, one: V, other: V) -> V:
        """What is known of a value that is one or the other."""
        ...

    def decided(self, choice: V, results: list[V]) -> list[V]:
        """Results of which `choice` decides which branch makes them, or how many rounds."""
        ...

    def scanned(self, equation: Any, x: V, around: Sequence[Any]) -> V:
        """What is known of the slices that a scan takes of `x`."""
        del equation, around
        return x


def propagated(closed: Any, inputs: Sequence[V], lattice: Lattice[V]) -> list[V]:
    """What is known of each result of a closed jaxpr."""
    return _Forward(lattice).through(closed.jaxpr, closed.consts, inputs, ())


def has_inside(equation: Any) -> bool:
    """Is it a call, a branch or a loop, whose functions tell what its results are?"""
    return equation.primitive.name in ("cond", "while", "scan") or callee(equation) is not None


class _Forward(Generic[V]):
    def __init__(self, lattice: Lattice[V]):
        self._lattice = lattice

    def through(
        self, jaxpr: Any, constants: Sequence[Any], inputs: Sequence[V], around: tuple[Any, ...]
    ) -> list[V]:
        lattice = self._lattice
        found: dict[Any, V] = dict(zip(jaxpr.invars, inputs, strict=True))
        found |= {v: lattice.of_constant(x) for v, x in zip(jaxpr.constvars, constants, strict=True)}
        given = set(jaxpr.constvars)

        def read(atom: Any) -> V:
            return lattice.of_constant(atom.val) if hasattr(atom, "val") else found[atom]

        for equation in jaxpr.eqns:
            operands = [read(a) for a in equation.invars]
            fixed = [hasattr(a, "val") or a in given for a in equation.invars]
            made = lattice.of_equation(equation, operands, around)
            if made is None:
                made = self._inside(equation, operands, (*around, equation))
            found.update(zip(equation.outvars, lattice.refined(equation, operands, made, fixed), strict=True))
        return [read(a) for a in jaxpr.outvars]

    def _inside(self, equation: Any, operands: list[V], around: tuple[Any, ...]) -> list[V]:
        """Through the functions of a call, a branch or a loop."""
        loops: dict[str, Callable[..., list[V]]] = {
            "cond": self._cond,
            "while": self._while,
            "scan": self._scan,
        }
        if equation.primitive.name in loops:
            return loops[equation.primitive.name](equation, operands, around)
        inner = callee(equation)
        if inner is None:
            raise NotImplementedError(f"a lattice left {equation.primitive.name} open, which calls nothing")
        return self.through(inner.jaxpr, inner.constants, operands, around)

    def _closed(self, inner: Any, inputs: Sequence[V], around: tuple[Any, ...]) -> list[V]:
        return self.through(inner.jaxpr, inner.consts, inputs, around)

    def _cond(self, equation: Any, operands: list[V], around: tuple[Any, ...]) -> list[V]:
        choice, *rest = operands
        first, *others = (self._closed(b, rest, around) for b in equation.params["branches"])
        for other in others:
            first = self._joined(first, other)
        return self._lattice.decided(choice, first)

    def _while(self, equation: Any, operands: list[V], around: tuple[Any, ...]) -> list[V]:
        p = equation.params
        n, m = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
        of_test, consts, carry = operands[:n], operands[n:m], operands[m:]
        carry = self._settled(p["body_jaxpr"], consts, carry, (), around)
        (test,) = self._closed(p["cond_jaxpr"], [*of_test, *carry], around)
        return self._lattice.decided(test, carry)

    def _scan(self, equation: Any, operands: list[V], around: tuple[Any, ...]) -> list[V]:
        p = equation.params
        n, m = p["num_consts"], p["num_consts"] + p["num_carry"]
        consts, carry = operands[:n], operands[n:m]
        xs = [self._lattice.scanned(equation, x, around) for x in operands[m:]]
        carry = self._settled(p["jaxpr"], consts, carry, xs, around)
        return [*carry, *self._closed(p["jaxpr"], [*consts, *carry, *xs], around)[len(carry) :]]

    def _settled(
        self, body: Any, consts: list[V], carry: list[V], xs: Sequence[V], around: tuple[Any, ...]
    ) -> list[V]:
        """What is known of a loop's carry after any number of rounds; knowledge is only lost."""
        while True:
            after = self._closed(body, [*consts, *carry, *xs], around)[: len(carry)]
            new = self._joined(carry, after)
            if new == carry:
                return carry
            carry = new

    def _joined(self, one: list[V], other: list[V]) -> list[V]:
        return [self._lattice.joined(a, b) for a, b in zip(one, other, strict=True)]
