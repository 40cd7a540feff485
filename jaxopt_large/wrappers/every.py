"""The list of these wrappers."""

# ruff: noqa: F403
from .cautious import *
from .decoupled import *
from .ema_of_params import *
from .lookahead import *
from .mechanic import *
from .sam import *
from .schedule_free import *

__all__ = [name for name, value in globals().items() if callable(value) and not name.startswith("_")]
