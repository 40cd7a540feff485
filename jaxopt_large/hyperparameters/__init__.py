"""Hyper-parameters in the state: read, set between steps without compiling anew, driven by schedules."""

from .turning import with_hyperparams as with_hyperparams
from .values import hyperparams as hyperparams
from .values import learning_rate as learning_rate
from .values import set_hyperparams as set_hyperparams
