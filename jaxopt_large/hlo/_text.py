"""HLO text taken apart: computations, instructions, what they call, their types and device groups.

Read as XLA prints it for every platform, with `%` before the names or without.
"""

import itertools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from .._errors import message

_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$")
_INSTRUCTION = re.compile(r"(?:ROOT )?%?[\w.\-]+ = (.+?) ([a-z][a-z0-9\-]*)\(")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation"
    r"|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_NAME = re.compile(r"[\w.\-]+")
_BITS = re.compile(r"(pred|bf|[fsuc])(\d*)")
_ARRAY = re.compile(r"\b(pred|bf16|[fsuc]\d+[a-z0-9]*)\[([\d,<=]*)\]")
_TRIPS = re.compile(r'known_trip_count\\?":\{\\?"n\\?":\\?"(\d+)')
_BOUND = re.compile(r"[su]\d+\[\][^=]* constant\((\d+)\)")


class Instruction(NamedTuple):
    """One line of a computation: `result` is a type, such as "(f32[4]{0}, u32[])"."""

    result: str
    operation: str
    line: str

    def called(self) -> list[str]:
        """The names of the computations it runs."""
        return [n for names in _CALLED.findall(self.line) for n in _NAME.findall(names)]


class Module(NamedTuple):
    """A program: instructions by the name of their computation, and how many devices run it."""

    computations: dict[str, list[Instruction]]
    entry: str
    replicas: int
    partitions: int


def parse(text: str) -> Module:
    """Takes HLO text apart.

    Raises:
      ValueError: it has no entry computation, as StableHLO has none.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in map(str.strip, text.splitlines()):
        head = _HEAD.match(line)
        if head:
            current = computations.setdefault(head.group(2), [])
            entry = head.group(2) if head.group(1) else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (instruction := _INSTRUCTION.match(line)):
            current.append(Instruction(instruction[1], instruction[2], line))
    if not computations.get(entry):
        raise ValueError(
            message(
                "collectives",
                f"compiled is not a compiled program, got text that starts with {text[:40]!r}",
                allowed="HLO with an ENTRY computation",
                do="Pass jax.jit(f).lower(...).compile(), or its as_text()",
            )
        )
    header = text.lstrip().split("\n", 1)[0]
    return Module(computations, entry, _number("replica_count", header), _number("num_partitions", header))


def _number(name: str, header: str) -> int:
    """A number in the first line of the text, which leaves out those that are 1."""
    found = re.search(rf"\b{name}=(\d+)", header)
    return int(found.group(1)) if found else 1


def elements(result: str) -> list[str]:
    """The types that a tuple type consists of; a type that is no tuple is its own only element."""
    return list(_split(result[1:-1])) if result.startswith("(") else [result]


def _split(text: str) -> Iterator[str]:
    """Splits at the commas that stand in no bracket: layouts and inner tuples have their own."""
    depth, start = 0, 0
    for i, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            yield text[start:i].strip()
            start = i + 1
    yield text[start:].strip()


def arrays(result: str) -> list[tuple[int, tuple[int, ...]]]:
    """(bytes, shape) of every array in a type."""
    found = []
    for dtype, dims in _ARRAY.findall(result):
        shape = tuple(int(d.removeprefix("<=")) for d in dims.split(",") if d)
        match = _BITS.match(dtype)
        bits = int(match.group(2)) if match and match.group(2) else 8
        found.append((math.prod(shape) * bits // 8, shape))
    return found


def trips(loop: Instruction, module: Module) -> int:
    """How often a loop runs: what the compiler says, else the bound of a counting loop, else 1."""
    said = _TRIPS.search(loop.line)
    if said:
        return int(said.group(1))
    condition = re.search(r"condition=%?([\w.\-]+)", loop.line)
    own = module.computations.get(condition.group(1), []) if condition else []
    fused = [i for call in own for name in call.called() for i in module.computations.get(name, [])]
    lines = "\n".join(i.line for i in [*own, *fused])
    bounds = _BOUND.findall(lines)
    if len(bounds) != 1 or "direction=LT" not in lines:
        return 1
    return -(-int(bounds[0]) // _step(loop, lines, module))


def _step(loop: Instruction, condition: str, module: Module) -> int:
    """By how much a loop counts: what its body adds to the number that the condition compares.

    Compilers write two rounds of a short loop one after the other, and count by two.
    """
    place = re.search(r"get-tuple-element\([^)]*\), index=(\d+)", condition)
    body = re.search(r"body=%?([\w.\-]+)", loop.line)
    lines = [i.line for i in module.computations.get(body.group(1), [])] if body else []
    made = {line.removeprefix("ROOT ").lstrip("%").split(" = ")[0]: line for line in lines}
    root = next((line for line in lines if line.startswith("ROOT ")), "")
    results = _operands(root, "tuple")
    if place is None or int(place.group(1)) >= len(results):
        return 1
    for name in _operands(made.get(results[int(place.group(1))], ""), "add"):
        number = re.search(r" constant\((\d+)\)", made.get(name, ""))
        if number:
            return max(1, int(number.group(1)))
    return 1


def _operands(line: str, operation: str) -> list[str]:
    """The names of what an instruction takes, whether types stand before them or not."""
    _, found, rest = line.partition(f" {operation}(")
    if not found:
        return []
    depths = itertools.accumulate(((c in "([{") - (c in ")]}") for c in rest), initial=1)
    end = next((n for n, depth in enumerate(depths) if depth == 0), len(rest))
    parts = [re.sub(r"/\*.*?\*/", "", part).split() for part in _split(rest[: max(end - 1, 0)])]
    return [words[-1].lstrip("%") for words in parts if words]


def group_size(collective: Instruction, module: Module) -> int:
    """Devices in one group of the operation."""
    line = collective.line
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return listed.group(1).count(",") + 1
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", line)
    if iota:
        return int(iota.group(2))
    axes = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line)
    if axes:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes.group(1)))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", axes.group(2)))
    if "channel_id=" not in line and module.replicas > 1:
        return module.replicas  # without a channel, partitions do not talk to one another
    return module.replicas * module.partitions
