"""What a step costs, read from what the compiler made of it."""

from .hlo import Collective as Collective
from .hlo import Collectives as Collectives
from .hlo import collectives as collectives
