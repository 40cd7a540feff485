"""What a compiler made of a step, read from its text."""

from .collectives import Collective as Collective
from .collectives import Collectives as Collectives
from .collectives import collectives as collectives
