"""One file per rule; this is the list of them, in the order in which they are shown.

`jl.rules` is this module, and can be called: `print(jl.rules())`.
"""

# ruff: noqa: I001
import sys as _sys
import types as _types

from ._registry import RULES as RULES
from ._registry import Rules as _Rules
from ._registry import rules as _rules
from .learning_rate import *
from .weight_decay import *
from .gradient_descent import *
from .sgd import *
from .adagrad import *
from .rmsprop import *
from .adam import *
from .lion import *

__all__ = [name for name, value in globals().items() if callable(value) and not name.startswith("_")]


class _CallableModule(_types.ModuleType):
    """The module, which has the name of the function."""

    def __call__(self) -> _Rules:
        return _rules()


_sys.modules[__name__].__class__ = _CallableModule
