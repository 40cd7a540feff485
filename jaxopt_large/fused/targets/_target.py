"""What a kernel has to know of the chip that it is compiled for."""

from typing import Any, ClassVar

from jax.experimental import pallas as pl

from ...passes.passes import Pass
from ._blocks import Blocks
from ._tiles import Tile


class Target:
    """A kind of chip.

    Attributes:
      name: as `apply(..., kernels=)` has it.
      platform: as JAX names it; "" for none: it is only run where it is asked for.
      interpreted: does Pallas' interpreter run the kernel?
    """

    name: ClassVar[str]
    platform: ClassVar[str]
    interpreted: ClassVar[bool] = False

    def why_not(self, pass_: Pass) -> str | None:
        """Why the chip that is here can run no kernel for a pass; None: nothing speaks against it."""
        del pass_
        return None

    def tile(self, pass_: Pass) -> Tile:
        """A tile for the arrays of a pass.

        Raises:
          NoTileError: none will do; it says why.
        """
        raise NotImplementedError

    def blocks(self, pass_: Pass, tile: Tile) -> Blocks:
        """How tiles come from memory and go back."""
        return Blocks(pass_, tile)

    def numbers_spec(self, x: Any) -> pl.BlockSpec:
        """How a kernel sees a vector of numbers."""
        return pl.BlockSpec(x.shape, lambda *index: (0,))

    def options(self) -> dict[str, Any]:
        """Further arguments of `pallas_call`."""
        return {}

    def moved(self, pass_: Pass) -> tuple[int, int]:
        """Bytes that a kernel reads and writes."""
        return sum(map(pass_.bytes_of, pass_.inputs)), sum(map(pass_.bytes_of, pass_.results.values()))
