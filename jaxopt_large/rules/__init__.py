"""One file per rule; this is the list of them, in the order in which they are shown."""

# ruff: noqa: I001
from ._registry import RULES as RULES
from ._registry import rules as rules
from .learning_rate import *
from .weight_decay import *
from .gradient_descent import *
from .sgd import *
from .adagrad import *
from .rmsprop import *
from .adam import *
from .lion import *

__all__ = [name for name, value in globals().items() if callable(value) and not name.startswith("_")]
