"""A functional optimizer toolkit for JAX models that outgrow one device.

The names are in `_api`. They are loaded at first use, so that `jaxopt-large --help` need not wait for
JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._api import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    names = {} if name.startswith("_") else _public_names()
    if name not in names:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return names[name]


def __dir__() -> list[str]:
    return sorted({*_public_names(), "__version__"})


def _public_names() -> dict[str, Any]:
    api = importlib.import_module(f"{__name__}._api")
    names = {name: value for name, value in vars(api).items() if not name.startswith("_")}
    globals().update(names)
    return names
