"""What a run costs, before it starts.

`jl.plan` is this package, and can be called: `print(jl.plan(rule, params))`.
"""

import sys as _sys
import types as _types
from typing import Any as _Any

from ..hlo import Collective as Collective
from ..hlo import Collectives as Collectives
from ..hlo import collectives as collectives
from . import picture as picture
from .beside import beside as beside
from .chips import CHIPS as CHIPS
from .chips import Chip as Chip
from .memory import plan as plan
from .sheet import Plan as Plan
from .sheet import PlanRow as PlanRow
from .sheet import Whole as Whole
from .times import PlannedCollective as PlannedCollective
from .times import PlannedCollectives as PlannedCollectives
from .times import duration as duration


class _CallableModule(_types.ModuleType):
    """The module, which has the name of the function."""

    def __call__(self, rule: _Any, params: _Any, mesh: _Any = None, **options: _Any) -> Plan:
        return plan(rule, params, mesh, **options)


_sys.modules[__name__].__class__ = _CallableModule
