"""The rules in NumPy float64, written from the papers, on one array.

Each oracle is a function (gradients of all steps, first parameter, hyper-parameters) -> the parameter
after each step, with the name of its rule. Nothing here is shared with the library.
"""

# ruff: noqa: F403
from .adams import *
from .factored import *
from .first import *
from .games import *
from .norms import *
from .rate_free import *
from .signs import *
