"""Checksums of the parts of an array, computed on the host while other threads read or write.

An array is cut where the devices that hold it cut it, and then into parts of 16 MiB at most. Each part has
the CRC-32 of its elements, in their order. Whoever holds a whole part, on however many devices, can tell
whether it is as it was written; what several processes hold together is brought together first.
"""

import itertools
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from .._processes import is_writer

_PARTS = ".parts.json"
_LARGEST = 2**24  # bytes of a part
_THREADS = 8  # zlib and NumPy let others run meanwhile

Box = tuple[tuple[int, int], ...]  # from and to, along each dimension


class Part(NamedTuple):
    """A part of an array.

    Attributes:
      box: where it is.
      crc32: of its bytes.
    """

    box: Box
    crc32: int

    def entry(self) -> list[Any]:
        """For the manifest."""
        return [[a for a, _ in self.box], [b for _, b in self.box], self.crc32]

    @classmethod
    def of_entry(cls, entry: Sequence[Any]) -> "Part":
        start, stop, crc = entry
        return cls(tuple(zip(start, stop, strict=True)), crc)


def parts_of(arrays: Mapping[str, Any]) -> dict[str, list[Part]]:
    """The parts of each array that this process holds; of what several devices hold the first one's."""
    pieces = [
        (name, box, held, inner)
        for name, x in arrays.items()
        for box, held in _held(x, first=True)
        for inner in _cut(box, held.dtype.itemsize)
    ]
    with ThreadPoolExecutor(_workers()) as pool:
        sums = pool.map(lambda p: _crc(_view(p[2], p[1], p[3])), pieces)
        found: dict[str, list[Part]] = {name: [] for name in arrays}
        for (name, _, _, inner), crc in zip(pieces, sums, strict=True):
            found[name].append(Part(inner, crc))
    return found


def changed(arrays: Mapping[str, Any], parts: Mapping[str, Sequence[Part]]) -> dict[str, Box]:
    """The arrays that are not as they were, and where; all processes must ask for the same arrays."""
    tasks, wrong = [], {}
    for name, x in arrays.items():
        if _is_torn(x, parts[name]):  # one after another: all of it is here then
            whole = [(_everything(x), _gathered(x))]
            bad = [part.box for part in parts[name] if not _is_same(part, whole)]
            if bad:
                wrong[name] = bad[0]
        else:
            held = list(_held(x, first=False))
            tasks += [(name, part, held) for part in parts[name]]
    with ThreadPoolExecutor(_workers()) as pool:
        same = pool.map(lambda t: _is_same(t[1], t[2]), tasks)
        for (name, part, _), fits in zip(tasks, same, strict=True):
            if not fits:
                wrong.setdefault(name, part.box)
    return wrong


def sealed(entries: Sequence[Any]) -> str:
    """One checksum of an array's parts, as the manifest has them."""
    return f"{zlib.crc32(json.dumps(entries).encode()):016x}"


def covers(shape: Sequence[int], parts: Iterable[Part]) -> bool:
    """Are all elements of an array in one of its parts?"""
    return sum(_size(part.box) for part in parts) == math.prod(shape)


def write_parts(aside: Path, folder: str, parts: Mapping[str, Sequence[Part]]) -> None:
    """Keeps what this process has summed up, for the one that writes the manifest."""
    file = aside / f"{folder}.{jax.process_index()}{_PARTS}"
    file.write_text(json.dumps({name: [p.entry() for p in some] for name, some in parts.items()}))


def read_parts(aside: Path) -> dict[str, list[Any]]:
    """What all processes have summed up, as the manifest has it; the files are gone then."""
    found: dict[str, list[Any]] = {}
    for file in sorted(aside.glob(f"*{_PARTS}")):
        for name, some in json.loads(file.read_text()).items():
            found.setdefault(name, []).extend(some)
        file.unlink()
    return found


def _workers() -> int:
    return min(_THREADS, os.cpu_count() or 1)


def _held(x: Any, *, first: bool) -> Iterator[tuple[Box, Any]]:
    """The different parts of an array that devices of this process have.

    Args:
      x: an array.
      first: only those that no device of a smaller number has, in any process.
    """
    if not isinstance(x, jax.Array):
        x = np.asarray(x)
        if is_writer() or not first:
            yield _everything(x), x
        return
    seen = set()
    for shard in x.addressable_shards:
        box = _box_of(shard.index, x.shape)
        if box in seen or (first and shard.replica_id != 0):
            continue
        seen.add(box)
        yield box, shard.data


def _everything(x: Any) -> Box:
    return tuple((0, n) for n in x.shape)


def _cut(box: Box, itemsize: int) -> Iterator[Box]:
    """A box in boxes of `_LARGEST` bytes at most, along the first dimensions: their elements lie together."""
    sizes = [b - a for a, b in box]
    steps = list(sizes)
    for dim, size in enumerate(sizes):
        inner = math.prod(sizes[dim + 1 :]) * itemsize
        steps[dim] = min(size, max(1, _LARGEST // max(inner, 1)))
        if steps[dim] > 1 or inner <= _LARGEST:
            break
    ranges = [range(a, b, step) if step else range(a, a + 1) for (a, b), step in zip(box, steps, strict=True)]
    for starts in itertools.product(*ranges):
        yield tuple((s, min(s + step, b)) for s, step, (_, b) in zip(starts, steps, box, strict=True))


def _view(held: Any, box: Box, inner: Box) -> np.ndarray:
    """A part of what lies in `box`."""
    place = _place(inner, box)
    if isinstance(held, jax.Array) and next(iter(held.devices())).platform != "cpu":
        return np.asarray(held[place])  # of the whole array JAX would keep a copy on the host
    return np.asarray(held)[place]


def _crc(x: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)


def _is_same(part: Part, held: Sequence[tuple[Box, Any]]) -> bool:
    """Has a part its checksum? Of what another process has, yes."""
    meeting = []
    for box, data in held:
        common = _common(part.box, box)
        if common == part.box:
            return _crc(_view(data, box, part.box)) == part.crc32
        if _size(common) > 0:
            meeting.append((common, box, data))
    if not meeting:
        return True
    made, filled = np.empty([b - a for a, b in part.box], meeting[0][2].dtype), 0
    for common, box, data in meeting:
        piece = _view(data, box, common)
        made[_place(common, part.box)] = piece
        filled += piece.size
    return filled < made.size or _crc(made) == part.crc32


def _is_torn(x: Any, parts: Sequence[Part]) -> bool:
    """Is there a part that no single process holds?"""
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
        return False
    boxes: dict[int, set[Box]] = {}
    for device, index in x.sharding.devices_indices_map(x.shape).items():
        boxes.setdefault(device.process_index, set()).add(_box_of(index, x.shape))

    def is_whole(box: Box, others: Iterable[Box]) -> bool:
        return sum(_size(_common(box, other)) for other in others) == _size(box)

    return not all(any(is_whole(part.box, some) for some in boxes.values()) for part in parts)


def _box_of(index: Sequence[slice], shape: Sequence[int]) -> Box:
    """Where a device's part of an array is, as JAX says it."""
    return tuple((i.start or 0, n if i.stop is None else i.stop) for i, n in zip(index, shape, strict=True))


def _common(box: Box, other: Box) -> Box:
    """What two boxes have both; of no size where they do not meet."""
    return tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(box, other, strict=True))


def _place(inner: Box, box: Box) -> tuple[slice, ...]:
    """Where a box is in another that holds it."""
    return tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(inner, box, strict=True))


def _size(box: Box) -> int:
    """How many elements it has."""
    return math.prod(max(0, b - a) for a, b in box)


def _gathered(x: Any) -> np.ndarray:
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
