"""Any platform, by Pallas' interpreter, for tests: with the tiles of a TPU."""

from typing import Any

from jax.experimental import pallas as pl

from ._target import Target
from .tpu import TPU


class Interpreted(TPU):
    name, platform, interpreted = "interpret", "", True

    def numbers_spec(self, x: Any) -> pl.BlockSpec:
        return Target.numbers_spec(self, x)

    def options(self) -> dict[str, Any]:
        return {}
