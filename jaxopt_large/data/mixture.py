"""Several data sets at once, in the shares of their weights."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping

import numpy as np

from .._errors import message
from ._dataset import Batch, DataError, Dataset
from ._windows import located


def mixture(parts: Mapping[str, Dataset], weights: Mapping[str, float]) -> Dataset:
    """Examples of several data sets, of which each has an order and epochs of its own.

    Of every run of examples each part has its share, to about one part in a hundred; a small part comes round
    more often than a large one.

    Args:
      parts: name -> data set.
      weights: name -> weight, above 0; shares are weights over their sum.

    Raises:
      DataError: examples differ in length, or weights do not match the parts.
    """
    if parts.keys() != weights.keys() or not parts:
        wrong = f"data.weights do not match data.parts, got {', '.join(weights) or 'none'}"
        raise DataError(message("data", wrong, allowed=f"one for each of {', '.join(parts) or 'none'}"))
    lengths = {name: part.validation["tokens"].shape[1] - 1 for name, part in parts.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise DataError(message("data", f"parts of a mixture differ in data.context, got {told}"))
    masked = any("mask" in part.validation for part in parts.values())
    named = {name: _named(name, part, masked) for name, part in parts.items()}
    total = sum(weights.values())
    each = sum(part.tokens_per_example * weights[name] / total for name, part in named.items())
    units = {part.unit for part in parts.values()}
    told = "".join(f"{name} {weights[name]!r} {part.facts['sha256']}\n" for name, part in parts.items())
    return Dataset(
        name=" + ".join(parts),
        size=sum(part.size for part in parts.values()),
        example=_one_after_the_other(list(named.values())),
        validation=_stacked([part.validation for part in named.values()]),
        tokens_per_example=round(each),
        unit=units.pop() if len(units) == 1 else "token",
        facts={
            "sha256": hashlib.sha256(told.encode()).hexdigest(),
            **{key: sum(part.facts.get(key, 0) for part in parts.values()) for key in _summed(parts)},
            "parts": {name: part.facts for name, part in parts.items()},
        },
        files={
            f"{name}: {file}": known for name, part in parts.items() for file, known in part.files.items()
        },
        mixed=tuple((part, weights[name]) for name, part in named.items()),
    )


def _one_after_the_other(parts: list[Dataset]) -> Callable[[int], Batch]:
    ends = np.cumsum([part.size for part in parts])

    def example(index: int) -> Batch:
        number, inside = located(ends, index)
        return parts[number].example(inside)

    return example


def _summed(parts: Mapping[str, Dataset]) -> list[str]:
    """What can be counted over all parts."""
    return sorted({key for part in parts.values() for key, x in part.facts.items() if isinstance(x, int)})


def _named(name: str, part: Dataset, masked: bool) -> Dataset:
    """A part with the name by which its order is drawn, and with masks if others have some."""
    if not masked or "mask" in part.validation:
        return dataclasses.replace(part, name=name)

    def example(index: int) -> Batch:
        return _whole(part.example(index))

    return dataclasses.replace(part, name=name, example=example, validation=_whole(part.validation))


def _whole(batch: Batch) -> Batch:
    """Every target counts."""
    tokens = batch["tokens"]
    return {**batch, "mask": np.ones((*tokens.shape[:-1], tokens.shape[-1] - 1), bool)}


def _stacked(batches: list[Batch]) -> Batch:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
