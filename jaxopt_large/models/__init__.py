"""Models as plain functions on dictionaries of arrays."""

from typing import Any

from ._model import Model as Model
from ._place import Place as Place
from .bert import bert
from .mlp import mlp
from .moe import moe
from .t5 import t5
from .transformer import transformer

_MODELS = {"bert": bert, "mlp": mlp, "moe": moe, "t5": t5, "transformer": transformer}


def make_model(settings: Any) -> Model:
    """The model that a configuration's `model` group describes: its kind, and the kind's arguments."""
    arguments = settings.model_dump()
    return _MODELS[arguments.pop("kind")](**arguments)
