"""Where an array lies in a larger one."""

from typing import Any, NamedTuple


class Window(NamedTuple):
    """A part of a whole array; how large it is, the array at hand says.

    Attributes:
      whole: the shape of the whole array.
      starts: where the part begins along each axis; a single number of an array of more axes: it is a run
        of the flattened array.
    """

    whole: tuple[int, ...]
    starts: tuple[Any, ...]
