"""Private training: what it draws, what its steps are made of, and how much of the budget is spent."""

import functools
import hashlib
import json
import secrets
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import message
from ..config import Config, settings
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
      budget: what may be spent; None: anything.
      stop_at: the step after which the run ends: the last one, or the last within the budget.
      secret: what draws and noise depend on.

    Args:
      config: of the run.
      dataset: what it draws from.
      kept: what the checkpoint that it goes on from says of the steps before.

    Raises:
      RunError: what they spent would be counted wrong, or there is nothing to draw from.
    """

    def __init__(self, config: Config, dataset: Dataset, kept: dict[str, Any] | None = None):
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
        self.noise = self._noise(kept)
        self.room = room_for(dataset.size, train.batch, placement.mesh[placement.data_axis])
        self.secret = self._drawn() if kept is None else int(kept["secret"])
        budgets = [x for x in (train.max_epsilon, asked.epsilon) if x is not None]
        self.budget = min(budgets, default=None)
        self.stop_at = train.steps
        if self.budget is not None:
            given: dict[str, Any] = {"noise_multiplier": self.noise, "most": train.steps, **self._known}
            self.stop_at = steps_within(epsilon=self.budget, **given)
        if kept is not None:
            _check_same(kept, self.kept())

    def _noise(self, kept: dict[str, Any] | None) -> float:
        """As it is asked for; of a budget, that with which a run began."""
        if self._asked.noise_multiplier is not None:
            return self._asked.noise_multiplier
        if kept is not None:
            return float(kept["noise_multiplier"])
        steps = self._config.train.steps
        return noise_for_budget(epsilon=self._asked.epsilon, steps=steps, **self._known)

    def kept(self) -> dict[str, Any]:
        """What a checkpoint says of the steps before it."""
        return {
            "secret": self.secret,
            "noise_multiplier": self.noise,
            "clip": self._asked.clip,
            "batch": self._config.train.batch,
            "examples": self._dataset.size,
        }

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
            wrong = f"the privacy budget is spent, got epsilon {self.epsilon(step):.4g} after {step} steps"
            do = "Raise it, or start a run of another name with more noise"
            raise RunError(message("train", wrong, allowed=f"the budget is {self.budget:g}", do=do))

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
        words = np.frombuffer(_part(self.secret, "noise", self._told()).to_bytes(8, "little"), np.uint32)
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

    def _told(self) -> int:
        """A number for all that decides what a step's sum is.

        A run that is taken back and goes on with other settings makes other sums: their noise is another too.
        """
        every = settings(self._config)
        decides = {name: every.get(name) for name in ("data", "model", "optimizer", "seed")}
        decides |= {"clip": self._asked.clip, "batch": self._config.train.batch}
        decides |= {"steps": self._config.train.steps}  # of which schedules make rates
        text = json.dumps(decides, sort_keys=True, default=str)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")

    def told(self, steps: int) -> str:
        """For the card: "epsilon 1.23 at delta 1e-05; noise 1.6 x clip 1"."""
        asked = self._asked
        bound = "" if self.budget is None else f" of {self.budget:g}"
        return (
            f"epsilon {self.epsilon(steps):.4g}{bound} at delta {asked.delta:g}; "
            f"noise {self.noise:.4g} x clip {asked.clip:g}"
        )


def private_of(config: Config, dataset: Dataset, before: dict[str, Any] | None) -> Private | None:
    """The privacy of a run; None where none is asked for.

    Args:
      config: of the run.
      dataset: what it draws from.
      before: the metadata of the checkpoint that it goes on from; None where there is none.

    Raises:
      RunError: the steps before were made with other noise, or with none.
    """
    kept = None if before is None else before.get("private")
    if before is not None and (kept is None) != (config.privacy is None):
        how = "without privacy" if kept is None else "with privacy"
        wrong = f"the steps before were made {how}, and are not what the ones after are"
        raise RunError(message("train", wrong, do="Start a run of another name"))
    return None if config.privacy is None else Private(config, dataset, kept)


def _check_same(kept: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises where what is spent would be counted wrong."""
    wrong = [
        f"{name} {kept[name]:g} -> {now[name]:g}"
        for name in now
        if name != "secret" and now[name] != kept[name]
    ]
    if wrong:
        text = f"privacy: what steps spend has changed since the checkpoint, got {', '.join(wrong)}"
        raise RunError(message("train", text, do="Take it back, or start a run of another name"))


def _part(secret: int, what: str, more: int = 0) -> int:
    """Another number for each use of a secret."""
    words = np.random.SeedSequence([secret, _SALTS[what], more]).generate_state(2, np.uint32)
    return int.from_bytes(words.tobytes(), "little")
