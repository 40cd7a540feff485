"""The formats, of fields and of parameters: this is the list of them."""

from .bfloat16 import bfloat16
from .float8 import float8
from .float32 import float32
from .int4 import int4
from .int8 import int8
from .parameters import rounded, split

FORMATS = {make.__name__: make for make in (float32, bfloat16, float8, int8, int4)}  # of fields of the state
PARAMETER_FORMATS = {make.__name__: make for make in (rounded, split)}  # of parameters in bfloat16

__all__ = [*FORMATS, *PARAMETER_FORMATS]
