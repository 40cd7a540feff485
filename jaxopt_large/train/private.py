"""Private training: what it draws, what its steps are made of, and how much of the budget is spent."""

import functools
import secrets
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import message
from ..config import Config
from ..data import Dataset, PoissonBatches, room_for
from ..privacy import noise_for_budget, privacy_spent, private_gradients, steps_within
from ._errors import RunError
from .step import Gradient, Objective

_SALTS = {"draws": 1, "noise": 2}  # two uses of one secret


class Private:
    """The privacy of a run, as its configuration asks for it.

    Attributes:
      noise: the noise multiplier.
      room: examples that a batch has room for.
      stop_at: the step after which the run ends: the last one, or the last within the budget.
      secret: what draws and noise depend on.
    """

    def __init__(self, config: Config, dataset: Dataset, secret: int | None = None):
        asked: Any = config.privacy
        self._config, self._asked, self._dataset = config, asked, dataset
        train, placement = config.train, config.placement
        if dataset.mixed:
            raise RunError(message("train", "privacy: a mixture is no one set of examples to draw from"))
        if train.batch > dataset.size:
            wrong = f"privacy: a batch of {train.batch} is expected of {dataset.size} examples"
            raise RunError(message("train", wrong, do="Lower train.batch"))
        self._known: dict[str, Any] = {
            "sampling_rate": train.batch / dataset.size,
            "delta": asked.delta,
            "method": asked.method,
        }
        self.noise = asked.noise_multiplier
        if self.noise is None:
            self.noise = noise_for_budget(epsilon=asked.epsilon, steps=train.steps, **self._known)
        self.room = room_for(dataset.size, train.batch, placement.mesh[placement.data_axis])
        self.secret = self._drawn() if secret is None else secret
        self.stop_at = train.steps
        if train.max_epsilon is not None:
            given: dict[str, Any] = {"noise_multiplier": self.noise, "most": train.steps, **self._known}
            self.stop_at = steps_within(epsilon=train.max_epsilon, **given)

    def _drawn(self) -> int:
        """A secret of its own for each run; all processes have the same."""
        if self._asked.seed is not None:
            return self._asked.seed
        drawn = np.frombuffer(secrets.token_bytes(8), np.uint32)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            drawn = multihost_utils.broadcast_one_to_all(drawn)
        return int.from_bytes(np.asarray(drawn, np.uint32).tobytes(), "little")

    def check_budget(self, step: int) -> None:
        """Raises where a run that is to go on has nothing left.

        Raises:
          RunError: one more step would pass the budget.
        """
        if step >= self.stop_at and self.stop_at < self._config.train.steps:
            spent, most = self.epsilon(step), self._config.train.max_epsilon
            wrong = f"the privacy budget is spent, got epsilon {spent:.4g} after {step} steps"
            do = "Raise train.max_epsilon, or privacy.noise_multiplier and start again"
            raise RunError(message("train", wrong, allowed=f"train.max_epsilon is {most:g}", do=do))

    @functools.cache  # noqa: B019 (one for each run)
    def epsilon(self, steps: int) -> float:
        """What so many steps spend."""
        return privacy_spent(noise_multiplier=self.noise, steps=steps, **self._known)

    def batches(self, rows: Any) -> PoissonBatches:
        """The draws."""
        secret = _part(self.secret, "draws")
        return PoissonBatches(self._dataset, self._config.train.batch, self.room, secret, rows=rows)

    def gradient(self, objective: Objective, axis_name: Any = None) -> Gradient:
        """(parameters, batch) -> loss and private gradient; the batch has one micro-batch."""
        words = np.frombuffer(_part(self.secret, "noise").to_bytes(8, "little"), np.uint32)
        made = private_gradients(
            lambda params, example: objective(params, jax.tree.map(lambda x: x[None], example)),
            self._asked.clip,
            self.noise,
            jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32"),
            self._config.train.batch,
            microbatch_size=self._asked.microbatch,
            axis_name=axis_name,
        )

        def gradient(params: Any, batch: Any) -> Any:
            examples = {name: x[0] for name, x in batch.items()}
            there, draw = examples.pop("there"), examples.pop("draw")
            grads, report = made(params, examples, draw[0], mask=there)
            return report.loss, grads

        return gradient

    def told(self, steps: int) -> str:
        """For the card: "epsilon 1.23 at delta 1e-05; noise 1.6 x clip 1"."""
        asked, most = self._asked, self._config.train.max_epsilon
        bound = "" if most is None else f" of {most:g}"
        return (
            f"epsilon {self.epsilon(steps):.4g}{bound} at delta {asked.delta:g}; "
            f"noise {self.noise:.4g} x clip {asked.clip:g}"
        )


def _part(secret: int, what: str) -> int:
    """Another number for each use of a secret."""
    words = np.random.SeedSequence([secret, _SALTS[what]]).generate_state(2, np.uint32)
    return int.from_bytes(words.tobytes(), "little")
