"""Where arrays are read that are cut in chunks other than their devices want: by chunks first, then moved.

A chunk is read whole. Where several processes each want a little of every chunk, all of them would read
everything; they read an equal part of the chunks each instead, and exchange what they have read.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_MOST = 1.1  # times what a process needs, up to which it reads that and no more
_AXIS = "all"

Chunk = tuple[int, ...]


def reading_places(chunks: Mapping[str, Chunk], targets: Mapping[str, Any]) -> dict[str, NamedSharding]:
    """The arrays that are to be read elsewhere than where they belong, and where.

    Args:
      chunks: the shape of each array's chunks, as far as they are known.
      targets: shapes with shardings.
    """
    found = {name: _place(chunks[name], x) for name, x in targets.items() if name in chunks}
    return {name: place for name, place in found.items() if place is not None}


def moved(x: jax.Array, place: Any) -> jax.Array:
    """An array in its place; what it was made of is given back."""
    return jax.jit(lambda x: x, out_shardings=place, donate_argnums=0)(x)


def _place(chunk: Chunk, target: Any) -> NamedSharding | None:
    sharding = target.sharding
    if not isinstance(sharding, NamedSharding) or sharding.is_fully_addressable:
        return None
    if len(chunk) != len(target.shape):
        return None
    needed, read = _of_a_process(sharding, target.shape, chunk)
    if read <= _MOST * needed:
        return None
    devices = np.asarray(sharding.mesh.devices).reshape(-1)
    mesh = Mesh(devices, (_AXIS,))
    ranked = []
    for dim, size in enumerate(target.shape):
        if size % len(devices) == 0:
            other = NamedSharding(mesh, PartitionSpec(*[None] * dim, _AXIS), memory_kind=sharding.memory_kind)
            ranked.append((_of_a_process(other, target.shape, chunk)[1], dim, other))
    best = min(ranked, default=None, key=lambda r: r[:2])
    return None if best is None or best[0] >= read else best[2]


def _of_a_process(sharding: NamedSharding, shape: tuple[int, ...], chunk: Chunk) -> tuple[int, int]:
    """The elements that the process with most of an array needs, and those of the chunks that it reads."""
    boxes: dict[int, set[tuple[tuple[int, int], ...]]] = {}
    for device, index in sharding.devices_indices_map(shape).items():
        box = tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))
        boxes.setdefault(device.process_index, set()).add(box)
    needed = [sum(math.prod(b - a for a, b in box) for box in own) for own in boxes.values()]
    read = [sum(math.prod(map(_touched, box, chunk, shape)) for box in own) for own in boxes.values()]
    return max(needed), max(read)


def _touched(span: tuple[int, int], chunk: int, size: int) -> int:
    """How long the chunks are that a span along a dimension meets."""
    start, stop = span
    return min(size, math.ceil(stop / chunk) * chunk) - start // chunk * chunk
