"""One file per rule; `every` is the list of them.

`jl.rules` is this package, and can be called: `print(jl.rules())`.
"""

import sys as _sys
import types as _types

from . import every as every
from ._registry import RULES as RULES
from ._registry import Rules as _Rules
from ._registry import rules as _rules


class _CallableModule(_types.ModuleType):
    """The module, which has the name of the function."""

    def __call__(self) -> _Rules:
        return _rules()


_sys.modules[__name__].__class__ = _CallableModule
