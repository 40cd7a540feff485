"""A functional optimizer toolkit for JAX models that outgrow one device.

The names are in `_api`. They are loaded at first use, so that `jaxopt-large --help` need not wait for
JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._api import *  # noqa: F403
    from .config import build as build
    from .config import load as load

__version__ = "0.1.0"


_FROM_EXTRAS = {"build": "config", "load": "config"}  # names that need more than the core


def __getattr__(name: str) -> Any:
    if name in _FROM_EXTRAS:
        return getattr(importlib.import_module(f"{__name__}.{_FROM_EXTRAS[name]}"), name)
    names = {} if name.startswith("_") else _core_names()
    if name not in names:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return names[name]


def __dir__() -> list[str]:
    return sorted({*_core_names(), *_FROM_EXTRAS, "__version__"})


def _core_names() -> dict[str, Any]:
    api = importlib.import_module(f"{__name__}._api")
    names = {name: value for name, value in vars(api).items() if not name.startswith("_")}
    globals().update(names)
    return names
