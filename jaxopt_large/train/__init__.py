"""Training runs: the only place with a loop, a clock and a terminal."""

from ._errors import RunError as RunError
from ._errors import RunWriteError as RunWriteError
from .loop import train as train
from .planning import plan_of as plan_of
from .rates import show_rates as show_rates
