"""Batches, from text, token ids or digits, in an order that a seed fixes and a position resumes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ._batches import Batches as Batches
from ._cache import Cache as Cache
from ._dataset import Batch as Batch
from ._dataset import DataError as DataError
from ._dataset import Dataset as Dataset
from ._files import Source as Source
from ._files import differences as differences
from ._files import expanded as expanded
from ._sampling import PoissonBatches as PoissonBatches
from ._sampling import room_for as room_for
from .digits import digits
from .mixture import mixture
from .text import folder_text, stdlib_text
from .text import found_documents as found_documents
from .tokens import tokens

_READ = {"stdlib": stdlib_text, "text": folder_text, "tokens": tokens}
_BOUNDED = {"text", "tokens"}  # kinds whose ids are held against the vocabulary


def load_data(
    settings: Any,
    seed: int,
    *,
    vocabulary: int | None = None,
    cache: Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Dataset:
    """The data set that a configuration's `data` group describes: its kind, and the kind's arguments.

    Args:
      settings: the group.
      seed: of what is drawn.
      vocabulary: of the model, against which ids are held.
      cache: a folder for what is found out about files once; None: it is found out each time.
      tell: is told of work that takes long and is done once.
    """
    return _loaded(settings.model_dump(), seed, vocabulary, Cache(cache, tell=tell))


def _loaded(arguments: dict[str, Any], seed: int, vocabulary: int | None, cache: Cache) -> Dataset:
    kind = arguments.pop("kind")
    if kind == "digits":
        return digits(seed=seed)
    if kind == "mixture":
        parts = arguments["parts"].items()
        made = {name: _loaded(part, seed, vocabulary, cache) for name, part in parts}
        return mixture(made, arguments["weights"])
    if kind in _BOUNDED:
        arguments["vocabulary"] = vocabulary
    return _READ[kind](**arguments, seed=seed, cache=cache)
