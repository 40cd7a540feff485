"""Batches, from text, token ids or digits, in an order that a seed fixes and a position resumes."""

from typing import Any

from ._dataset import Batch as Batch
from ._dataset import Batches as Batches
from ._dataset import DataError as DataError
from ._dataset import Dataset as Dataset
from .digits import digits
from .text import folder_text, stdlib_text
from .tokens import tokens

_DATA = {"digits": digits, "stdlib": stdlib_text, "text": folder_text, "tokens": tokens}


def load_data(settings: Any, seed: int, *, vocabulary: int | None = None) -> Dataset:
    """The data set that a configuration's `data` group describes: its kind, and the kind's arguments.

    Args:
      settings: the group.
      seed: of what is drawn.
      vocabulary: of the model, against which token ids are held.
    """
    arguments = settings.model_dump()
    kind = arguments.pop("kind")
    if kind == "tokens":
        arguments["vocabulary"] = vocabulary
    return _DATA[kind](**arguments, seed=seed)
