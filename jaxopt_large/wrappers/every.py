"""The list of these wrappers."""

from .cautious import cautious
from .decoupled import decoupled
from .ema_of_params import ema_of_params
from .lookahead import lookahead
from .mechanic import mechanic
from .sam import sam
from .schedule_free import schedule_free, schedule_free_adamw, schedule_free_eval_params, schedule_free_sgd

__all__ = [
    "cautious",
    "decoupled",
    "ema_of_params",
    "lookahead",
    "mechanic",
    "sam",
    "schedule_free",
    "schedule_free_adamw",
    "schedule_free_eval_params",
    "schedule_free_sgd",
]

# those that a configuration can put around its rules; `sam` needs a second gradient
_CONFIGURED = (cautious, decoupled, ema_of_params, lookahead, mechanic, schedule_free)
WRAPPERS = {make.__name__: make for make in _CONFIGURED}
