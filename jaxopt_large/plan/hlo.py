"""The collectives of a compiled function, counted in its HLO.

Compilers hide them: a TPU's reduce-scatter is a fusion that calls a computation named
`all-reduce-scatter`; an asynchronous all-gather is cloned into several fusions, which share a channel;
what stands in a loop runs once per round.
"""

import collections
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = re.compile(r"(pred|bf|[fsuc])(\d*)")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{\s*$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?[\w.\-]+ = (.+?) ([a-z][a-z0-9\-]*)\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations|called_computations)=")
_NAMES = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"\b(pred|bf16|[fsuc]\d+[a-z0-9]*)\[([\d,]*)\]")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CHANNEL = re.compile(r"channel_id=(\d+)")
_METADATA = re.compile(r'op_name="([^"]*)"')


class Collective(NamedTuple):
    """One collective operation.

    Attributes:
      kind: "all-reduce", "all-gather", "reduce-scatter", "all-to-all" or "collective-permute".
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


class Collectives(tuple[Collective, ...]):
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
        lines = [f"{'collective':20}{'count':>6}{'in loops':>10}{'MB a call':>12}"]
        for kind in _KINDS:
            if n := self.count(kind):
                loops = self.inside_loops().count(kind)
                lines.append(f"{kind:20}{n:6}{loops:10}{self.bytes(kind) / 1e6:12.3f}")
        return "\n".join(lines)


def collectives(compiled: Any) -> Collectives:
    """Counts the collectives of a compiled function, for CPU, GPU and TPU.

    Args:
      compiled: what `jax.jit(f).lower(...).compile()` returns, or its text.

    Returns:
      One entry per operation. A TPU's fused reduce-scatter counts as reduce-scatter, and the clones of
      an asynchronous operation count once.

    >>> compiled = jax.jit(lambda x: x + 1).lower(jnp.ones(3)).compile()
    >>> len(jl.plan.collectives(compiled))
    0
    """
    text = compiled if isinstance(compiled, str) else compiled.as_text()
    bodies, entry = _computations(text)
    found: dict[Any, Collective] = {}
    for name, loop, rounds, fused in _reached(bodies, entry):
        for line in bodies[name]:
            collective = _collective(line, name, loop, rounds)
            if collective is not None:
                channel = _CHANNEL.search(line)
                # clones stand in fusions; outside of them all may share one channel, as on CPU
                clones = channel.group(1) if channel and fused else (name, line)
                found.setdefault((collective.kind, loop, collective.shape, clones), collective)
    return Collectives(found.values())


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Name -> lines of each computation, and the name of the entry."""
    bodies: dict[str, list[str]] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            current = bodies.setdefault(head.group(2), [])
            entry = head.group(2) if head.group(1) else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            current.append(line)
    return bodies, entry


def _reached(bodies: dict[str, list[str]], entry: str) -> Iterator[tuple[str, str, int, bool]]:
    """Every computation that runs: its name, its loop, how often it runs, and whether it is a fusion's."""
    seen: set[tuple[str, str]] = set()
    pending = collections.deque([(entry, "main", 1, False)])
    while pending:
        name, loop, rounds, fused = pending.popleft()
        if (name, loop) in seen or name not in bodies:
            continue
        seen.add((name, loop))
        yield name, loop, rounds, fused
        for line in bodies[name]:
            called = _CALLED.split(line, maxsplit=1)
            if len(called) < 2:
                continue
            names = [n for n in _NAMES.findall(called[1]) if n in bodies]
            if " while(" in line:
                times = rounds * _trips(line, bodies)
                pending.extend((n, n, times, fused) for n in names)
            else:
                inside = fused or " fusion(" in line or "async-" in line
                pending.extend((n, loop, rounds, inside) for n in names)


def _trips(line: str, bodies: dict[str, list[str]]) -> int:
    """How often a loop runs: what the compiler says, else the bound of a counting loop, else 1."""
    said = _TRIPS.search(line)
    if said:
        return int(said.group(1))
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    body = "\n".join(bodies.get(condition.group(1), ())) if condition else ""
    bounds = re.findall(r"s32\[\][^=]* constant\((\d+)\)", body)
    return int(bounds[0]) if len(bounds) == 1 and "direction=LT" in body else 1


def _collective(line: str, computation: str, loop: str, rounds: int) -> Collective | None:
    instruction = _INSTRUCTION.match(line)
    if instruction is None:
        return None
    result, operation = instruction.groups()
    kind = operation.removesuffix("-start")
    if kind not in _KINDS:
        return None
    if computation.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
    results = _arrays(result)
    if operation.endswith("-start"):  # the start of an asynchronous operation: (operands, results)
        results = results[len(results) // 2 :]
    if operation == "reduce-scatter":
        results = [(size * _group_size(line), shape) for size, shape in results]
    if not results:
        return None
    name = _METADATA.search(line)
    return Collective(
        kind,
        max(results)[1],
        sum(size for size, _ in results),
        len(results),
        loop,
        rounds,
        name.group(1) if name else "",
    )


def _arrays(text: str) -> list[tuple[int, tuple[int, ...]]]:
    """(bytes, shape) of every array type in `text`."""
    found = []
    for dtype, dims in _ARRAY.findall(text):
        shape = tuple(int(d) for d in dims.split(",") if d)
        count = math.prod(shape)
        match = _BITS.match(dtype)
        bits = int(match.group(2)) if match and match.group(2) else 8
        found.append((count * bits // 8, shape))
    return found


def _group_size(line: str) -> int:
    """Devices in one group of the operation."""
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return listed.group(1).count(",") + 1
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", line)
    if iota:
        return int(iota.group(2))
    axes = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line)
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes.group(1))) if axes else {}
    return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", axes.group(2))) if axes else 1
