"""A functional optimizer toolkit for JAX models that outgrow one device.

The names are in `_api`. They are loaded at first use, so that `jaxopt-large --help` need not wait for
JAX.
"""

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._api import *  # noqa: F403
    from .config import build as build
    from .config import load as load

__version__ = "0.1.0"


_FROM_EXTRAS = {"build": "config", "load": "config"}  # names that need more than the core
_CLOSE = 0.75  # a mistyped letter or two: names of optax that are less like what was written are not named


def __getattr__(name: str) -> Any:
    if name in _FROM_EXTRAS:
        return getattr(importlib.import_module(f"{__name__}.{_FROM_EXTRAS[name]}"), name)
    names = {} if name.startswith("_") else _core_names()
    if name not in names:
        raise AttributeError(_no_such_name(name), name=name, obj=sys.modules[__name__])
    return names[name]


def __dir__() -> list[str]:
    return sorted({*_core_names(), *_FROM_EXTRAS, "__version__"})


def _no_such_name(name: str) -> str:
    """What is wrong with a name that is not here, and what to write in its place."""
    if name.startswith("_"):  # those that Python asks for: nobody reads the answer, nothing is loaded for it
        return f"module {__name__!r} has no attribute {name!r}"
    from ._errors import message

    wrong = f"module has no attribute {name!r}"
    if name.isidentifier() and importlib.util.find_spec(f"{__name__}.{name}"):
        return message(__name__, wrong, allowed="it is a module of its own", do=f"Import {__name__}.{name}")
    import difflib

    import optax

    from ._paths import nearest

    for home in (optax, getattr(optax, "contrib", None)):
        if home and name in vars(home):
            composes = "optax has it, and what optax has composes with what is here"
            return message(__name__, wrong, allowed=composes, do=f"Use {home.__name__}.{name}")
    theirs = difflib.get_close_matches(name.lower(), sorted(vars(optax).keys() - {*__dir__()}), 1, _CLOSE)
    near = f"the nearest are {nearest(name.lower(), __dir__())}"
    return message(__name__, wrong, allowed=near, do=f"optax has {theirs[0]!r}" if theirs else "")


def _core_names() -> dict[str, Any]:
    api = importlib.import_module(f"{__name__}._api")
    names = {name: value for name, value in vars(api).items() if not name.startswith("_")}
    globals().update(names)
    return names
