"""The kinds of chips that kernels are compiled for: a file for each, and this is the list of them."""

from ._target import Target as Target
from ._tiles import NoTileError as NoTileError
from ._tiles import Tile as Tile
from ._tiles import runs_at_once as runs_at_once
from .gpu import GPU
from .interpret import Interpreted
from .tpu import TPU

TARGETS: dict[str, Target] = {target.name: target for target in (TPU(), GPU(), Interpreted())}
