"""The list of the rules, in the order in which they are shown: a new one is a line here."""

# ruff: noqa: I001
from .learning_rate import *
from .weight_decay import *
from .gradient_descent import *
from .sgd import *
from .adagrad import *
from .rmsprop import *
from .adam import *
from .lion import *
from .orthogonalize import *
from .muon import *
from .normuon import *
from .soap import *
from .shampoo import *
from .kron import *
from .dion import *
from .scion import *
from .matrix_chain import *
from .hyperball import *
from .qk_clip import *

__all__ = [name for name, value in globals().items() if callable(value) and not name.startswith("_")]
