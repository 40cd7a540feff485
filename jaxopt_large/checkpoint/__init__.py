"""Checkpoints that say so when they are damaged, and states that go on under another rule."""

from ._files import local as local
from ._logical import unpadded as unpadded
from ._manifest import CheckpointError as CheckpointError
from ._manifest import NotWrittenError as NotWrittenError
from ._matching import RestoreReport as RestoreReport
from ._saving import Saving as Saving
from .api import difference as difference
from .api import read_metadata as read_metadata
from .api import restore as restore
from .api import restore_changed as restore_changed
from .api import save as save
from .convert import convert as convert
