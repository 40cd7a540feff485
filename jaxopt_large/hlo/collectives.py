"""The collectives of a compiled function, counted in its HLO.

Compilers hide them: a TPU's reduce-scatter is a fusion that calls a computation named
`all-reduce-scatter`; an asynchronous all-gather is cloned into several fusions, some of them inside loops
that run while it is in flight; what stands in a loop runs once per round; and a computation runs as often
as it is called.
"""

import re
from typing import Any, NamedTuple

from .._errors import message
from .._tables import Table, table
from . import _text
from ._text import Instruction, Module

_KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_CHANNEL = re.compile(r"channel_id=(\d+)")
_CHAIN = re.compile(r'chain_id="(\d+)"')
_METADATA = re.compile(r'op_name="([^"]*)"')


class Collective(NamedTuple):
    """One collective operation.

    Attributes:
      kind: "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all",
        "collective-permute" or "collective-broadcast".
      shape: of the largest result on one device (a reduce-scatter's is one share).
      bytes: of the whole arrays on one device: what is reduced, or what has been gathered.
      arrays: how many there are: compilers combine small collectives into one.
      computation: the loop body it stands in, or "main".
      rounds: how often it runs in one call; 1 outside loops, and where the number is not known.
      name: JAX's name of the operation.
    """

    kind: str
    shape: tuple[int, ...]
    bytes: int
    arrays: int
    computation: str
    rounds: int
    name: str


class Collectives(Table):
    """The collectives of one compiled function, in no particular order."""

    def count(self, kind: str) -> int:  # type: ignore[override]
        """How many of a kind there are in the program, each counted once."""
        return sum(c.kind == kind for c in self)

    def arrays(self, kind: str) -> int:
        """How many arrays the collectives of a kind move, each counted once."""
        return sum(c.arrays for c in self if c.kind == kind)

    def bytes(self, kind: str | None = None) -> int:
        """Bytes that take part in one call, rounds of loops multiplied out."""
        return sum(c.bytes * c.rounds for c in self if kind in (None, c.kind))

    def inside_loops(self) -> "Collectives":
        """Those that stand in the body of a loop."""
        return Collectives(c for c in self if c.computation != "main")

    def __str__(self) -> str:
        loops = self.inside_loops()
        kinds = [kind for kind in _KINDS if self.count(kind)]
        rows = [
            (kind, str(self.count(kind)), str(loops.count(kind)), f"{self.bytes(kind) / 1e6:.3f}")
            for kind in kinds
        ]
        return table(("collective", "count", "in loops", "MB a call"), rows)


def collectives(compiled: Any) -> Collectives:
    """Counts the collectives of a compiled function, for CPU, GPU and TPU.

    Args:
      compiled: what `jax.jit(f).lower(...).compile()` returns, or its text.

    Returns:
      One entry per operation, and per call of the computation it stands in: both branches of a conditional
      count, and a body that two loops share counts for each. A TPU's fused reduce-scatter counts as
      reduce-scatter, and the clones of an asynchronous operation count once.

    Raises:
      TypeError: it is neither, a function that is not compiled say.
      ValueError: the text is not HLO, such as the StableHLO of a function that is not compiled.

    >>> compiled = jax.jit(lambda x: x + 1).lower(jnp.ones(3)).compile()
    >>> len(jl.plan.collectives(compiled))
    0
    """
    if not isinstance(compiled, str) and not hasattr(compiled, "as_text"):
        raise TypeError(
            message(
                "collectives",
                f"compiled is not a compiled program, got {compiled!r}",
                do="Pass jax.jit(f).lower(...).compile(), or its as_text()",
            )
        )
    module = _text.parse(compiled if isinstance(compiled, str) else compiled.as_text())
    return Collectives(found.collective for found in _executed(module.entry, module, {}))


class _Found(NamedTuple):
    """A collective, and what tells it from others if it is a clone."""

    collective: Collective
    chain: str  # the number that the TPU compiler gives an asynchronous operation, or ""
    identity: tuple[Any, ...] | None  # what clones share; None for what is never cloned
    fused: bool = False  # only fusions hold clones: elsewhere all may share one channel, as on CPU


def _executed(name: str, module: Module, known: dict[str, list[_Found]]) -> list[_Found]:
    """What one call of a computation executes, computations that it calls included."""
    if name in known:
        return known[name]
    known[name] = []  # ends the search in texts where a computation calls itself
    own: list[_Found] = []
    fused: dict[Any, _Found] = {}
    called: list[_Found] = []
    for instruction in module.computations.get(name, []):
        operation = instruction.operation
        if found := _found(instruction, name, module):
            own.append(found)
        if operation.endswith(("-update", "-done")):
            continue  # these name the computation that the start has called
        for callee in instruction.called():
            inner = _executed(callee, module, known)
            if operation == "fusion":
                for found in inner:
                    fused.setdefault(found.identity or object(), found._replace(fused=True))
            elif operation == "while":
                times = _text.trips(instruction, module)
                called += [_in_loop(found, callee, times) for found in inner]
            else:
                called += inner
    # what starts here may be in flight while a loop runs, and then has clones in its body
    called = [f for f in called if not (f.fused and f.chain and f.identity in fused)]
    known[name] = [*own, *fused.values(), *called]
    return known[name]


def _in_loop(found: _Found, body: str, times: int) -> _Found:
    """`found` as the loop executes it: named after the innermost body, rounds multiplied."""
    c = found.collective
    computation = body if c.computation == "main" else c.computation
    return found._replace(collective=c._replace(computation=computation, rounds=c.rounds * times))


def _found(instruction: Instruction, computation: str, module: Module) -> _Found | None:
    """The collective that an instruction is, as one call of its computation executes it."""
    operation = instruction.operation.removesuffix("-start")
    operands, results = _operands_and_results(instruction)
    if operation not in _KINDS or not results:
        return None
    size = sum(size for size, _ in results)
    if operation == "reduce-scatter":
        whole = sum(size for size, _ in operands)
        size = whole or size * _text.group_size(instruction, module)
    fused_scatter = computation.startswith("all-reduce-scatter")
    kind = "reduce-scatter" if fused_scatter else operation
    name, channel, chain = (
        found.group(1) if (found := pattern.search(instruction.line)) else ""
        for pattern in (_METADATA, _CHANNEL, _CHAIN)
    )
    collective = Collective(kind, max(results)[1], size, len(results), "main", 1, name)
    # a fused reduce-scatter without a chain is whole; channels do not tell them apart, combined ones have 1
    cloned = chain or (channel and not fused_scatter)
    return _Found(collective, chain, (kind, *results, channel, chain) if cloned else None)


_Arrays = list[tuple[int, tuple[int, ...]]]


def _operands_and_results(instruction: Instruction) -> tuple[_Arrays, _Arrays]:
    """(bytes, shape) of its results, and of its operands where the type tells them.

    The start of an asynchronous operation has the type (operands, results, contexts), apart from an
    all-reduce's, which has its results only.
    """
    parts = _text.elements(instruction.result)
    asynchronous = instruction.operation.endswith("-start") and instruction.operation != "all-reduce-start"
    if asynchronous and len(parts) > 1:
        return _text.arrays(parts[0]), _text.arrays(parts[1])
    return [], _text.arrays(instruction.result)
