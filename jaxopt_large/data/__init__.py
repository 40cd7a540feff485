"""Batches, from text or digits, in an order that a seed fixes and a position resumes."""

from typing import Any

from ._dataset import Batch as Batch
from ._dataset import Batches as Batches
from ._dataset import DataError as DataError
from ._dataset import Dataset as Dataset
from .digits import digits
from .text import folder_text, stdlib_text

_DATA = {"digits": digits, "stdlib": stdlib_text, "text": folder_text}


def load_data(settings: Any, seed: int) -> Dataset:
    """The data set that a configuration's `data` group describes: its kind, and the kind's arguments."""
    arguments = settings.model_dump()
    return _DATA[arguments.pop("kind")](**arguments, seed=seed)
