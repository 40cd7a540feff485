"""The two ways to run a step on many devices: jit over a mesh, and pmap."""

import functools
import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from .._types import Params, Rule, State
from ..checkpoint import unpadded
from ..config import Config
from ..evaluation import evaluation_params, has_averages
from ..guards import roll_back
from ..microbatches import reduced_once
from ..models import Model
from ..placement.per_device import to_global, to_per_device
from ..placement.shardings import gradient_shardings
from .private import Private
from .shardings import OnMesh, placed_params
from .step import Gradient, Metrics, Objective, loss_of, make_evaluation, make_step, mean_of, weight_of


class Execution(Protocol):
    """How the loop talks to devices; parameters and state are opaque to it."""

    def init(self, key: Any) -> tuple[Params, State]:
        """Fresh parameters and state, placed."""

    @property
    def rows(self) -> list[int] | None:
        """Those of a batch that this process reads, rising; None: all."""

    def placed(self, batch: Any) -> Any:
        """A batch on its way to the devices: of host arrays, with the rows that this process reads."""

    def step(self, params: Params, state: State, batch: Any) -> tuple[Params, State, Metrics]:
        """One step on a placed batch; the old parameters and state are donated."""

    def evaluate(self, params: Params, batch: Any) -> dict[str, Any]:
        """Means over a batch of host arrays."""

    def averaged(self, params: Params, state: State) -> Params:
        """The parameters to evaluate: averages that the rule keeps, placed like the parameters, or these."""

    def rolled_back(self, params: Params, state: State) -> tuple[Params, State]:
        """Parameters and state of a snapshot."""

    def saved(self, params: Params, state: State) -> Any:
        """The tree to write to a checkpoint; it does not depend on the number of devices."""

    def loaded(self, tree: Any, params: Params, state: State) -> tuple[Params, State]:
        """A tree read from a checkpoint, placed like `params` and `state`."""

    def state_bytes(self, state: State) -> tuple[int, int]:
        """Bytes of the state unsharded, and the most that one device holds."""


def make_execution(
    config: Config, model: Model, rule: Rule, mesh: Mesh, private: Private | None = None
) -> Execution:
    """The execution that `placement.parallel` names."""
    if config.placement.parallel == "pmap":
        return PmapExecution(config, model, rule, mesh, private)
    fused = mesh.devices.flat[0].platform == "gpu"
    return JitExecution(config, model, rule, mesh, fused=fused, private=private)


class JitExecution:
    """jit over a mesh with Auto axes; batches are divided over the data axis.

    Args:
      config: of the run.
      model: its model.
      rule: with its wrappers.
      mesh: the devices.
      fused: is attention one kernel, where the devices have it? No plan sees into one.
      private: makes the gradients of a private run.
    """

    def __init__(
        self,
        config: Config,
        model: Model,
        rule: Rule,
        mesh: Mesh | AbstractMesh,
        *,
        fused: bool = False,
        private: Private | None = None,
    ):
        self._private = private
        self._examples = config.train.batch if private is None else private.room
        self._config, self._model, self.rule, self._mesh, self._fused = config, model, rule, mesh, fused
        self.params = placed_params(config, model, mesh)
        self._step: Any = None  # made by `init`, which knows where results belong

    @functools.cached_property
    def objective(self) -> Objective:
        """(parameters, micro-batch) -> loss.

        Raises:
          RunError: the model has none.
        """
        return self._objective((self._config.placement.data_axis,))

    def _objective(self, data: tuple[str, ...]) -> Objective:
        fused = self._fused and bool(data)  # a kernel that JAX divides itself, not inside mapped axes
        return loss_of(self._model, OnMesh(self._mesh, data, self.params, fused=fused))

    @functools.cached_property
    def gradient(self) -> Gradient:
        """(parameters, batch) -> loss and gradient, as a step makes them."""
        return self._gradient(self.objective)

    @functools.cached_property
    def _evaluate(self) -> Any:
        return jax.jit(make_evaluation(self.objective, self._model.accuracy))

    def init(self, key: Any) -> tuple[Params, State]:
        shardings = jax.tree.map(lambda x: x.sharding, self.params)
        params = jax.jit(self._model.init, out_shardings=shardings)(key)
        state = _on_mesh(self.rule.init(params), self._mesh)
        self._step = self.jitted(jax.tree.map(lambda x: x.sharding, state))
        return params, state

    def jitted(self, state_shardings: Any) -> Any:
        """The step, jitted: (params, state, batch) -> (params, state, metrics)."""
        whole = NamedSharding(self._mesh, PartitionSpec())
        places = (jax.tree.map(lambda x: x.sharding, self.params), state_shardings, whole)
        private = self._private is not None
        train = make_step(self.objective, self.rule, gradient=self.gradient, private=private)
        return jax.jit(train, donate_argnums=(0, 1), out_shardings=places)

    def _gradient(self, objective: Objective) -> Gradient:
        """The gradient of a batch in micro-batches, reduced for each of them or once."""
        placement, mesh = self._config.placement, self._mesh
        if self._private is not None:
            return self._private.gradient(objective)
        if self._config.train.accumulation == "deferred":
            own = self._objective(())
            axis = placement.data_axis
            spec = PartitionSpec(None, axis)

            def once(params: Params, batch: Any) -> Any:
                return reduced_once(mean_of(own), mesh, axis, spec, weight=weight_of(batch))(params, batch)

            return once
        divided = placement.zero is not None and self._config.train.accumulate > 1
        shardings = gradient_shardings(self.rule, self.params) if divided else None
        return mean_of(objective, shardings=shardings)

    @functools.cached_property
    def _batch_sharding(self) -> NamedSharding:
        """Of a batch's leaves, with micro-batches along their first axis."""
        return NamedSharding(self._mesh, PartitionSpec(None, self._config.placement.data_axis))

    def _batch_shape(self, *rest: int) -> tuple[int, ...]:
        rows = self._config.train.accumulate
        return rows, self._examples // rows, *rest

    @functools.cached_property
    def rows(self) -> list[int] | None:
        if jax.process_count() == 1:
            return None
        numbers = np.arange(self._examples).reshape(self._batch_shape())
        mine = self._batch_sharding.addressable_devices_indices_map(numbers.shape).values()
        return np.unique(np.concatenate([numbers[index].ravel() for index in mine])).tolist()

    def placed(self, batch: Any) -> Any:
        rows, sharding = self.rows, self._batch_sharding
        if rows is None:
            split = jax.tree.map(lambda x: x.reshape(self._batch_shape(*x.shape[1:])), batch)
            return jax.device_put(split, sharding)
        numbers = np.arange(self._examples).reshape(self._batch_shape())

        def of_all(x: np.ndarray) -> Any:
            def part(index: Any) -> np.ndarray:
                return x[np.searchsorted(rows, numbers[index[:2]])]

            return jax.make_array_from_callback(self._batch_shape(*x.shape[1:]), sharding, part)

        return jax.tree.map(of_all, batch)

    def step(self, params: Params, state: State, batch: Any) -> tuple[Params, State, Metrics]:
        return self._step(params, state, batch)

    def evaluate(self, params: Params, batch: Any) -> dict[str, Any]:
        sharding = NamedSharding(self._mesh, PartitionSpec(self._config.placement.data_axis))
        if jax.process_count() == 1:
            return self._evaluate(params, jax.device_put(batch, sharding))

        def of_all(x: np.ndarray) -> Any:  # every process has all that validates
            return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)

        return self._evaluate(params, jax.tree.map(of_all, batch))

    def averaged(self, params: Params, state: State) -> Params:
        return _averaged(params, state)

    def rolled_back(self, params: Params, state: State) -> tuple[Params, State]:
        return roll_back(params, state)

    def saved(self, params: Params, state: State) -> Any:
        return {"params": params, "state": state}

    def loaded(self, tree: Any, params: Params, state: State) -> tuple[Params, State]:
        return tree["params"], tree["state"]

    def state_bytes(self, state: State) -> tuple[int, int]:
        return _bytes(unpadded(state)), _most_on_a_device(state)


class PmapExecution:
    """pmap over the devices of one host; arrays carry a leading device axis."""

    def __init__(self, config: Config, model: Model, rule: Rule, mesh: Mesh, private: Private | None = None):
        axis = config.placement.data_axis
        self._config, self._model, self._rule = config, model, rule
        self._devices = list(mesh.devices.flat)
        options: dict[str, Any] = {"axis_name": axis, "devices": self._devices}
        whole = config.placement.zero is None
        objective = loss_of(model)
        gradient = None if private is None else private.gradient(objective, axis)
        how: dict[str, Any] = {"mean_over": axis, "average_gradients": whole}
        step = make_step(objective, rule, gradient=gradient, private=private is not None, **how)
        self._init_params = jax.pmap(model.init, **options)
        self._init_state = jax.pmap(rule.init, **options)
        self._step = jax.pmap(step, donate_argnums=(0, 1), **options)
        evaluate = make_evaluation(objective, model.accuracy, mean_over=axis)
        self._evaluate = jax.pmap(evaluate, **options)
        self._put_back = jax.pmap(lambda x: x, **options)

    def init(self, key: Any) -> tuple[Params, State]:
        data = jax.random.key_data(key)
        copies = jnp.broadcast_to(data[None], (len(self._devices), *data.shape))
        params = self._init_params(jax.random.wrap_key_data(copies))
        return params, self._init_state(params)

    @property
    def rows(self) -> list[int] | None:
        return None  # pmap is for the devices of one process

    def placed(self, batch: Any) -> Any:
        return self._split(batch, self._config.train.accumulate)

    def step(self, params: Params, state: State, batch: Any) -> tuple[Params, State, Metrics]:
        return _first_copy(self._step(params, state, batch))

    def evaluate(self, params: Params, batch: Any) -> dict[str, Any]:
        means = self._evaluate(params, jax.tree.map(lambda x: x[:, 0], self._split(batch, 1)))
        return jax.tree.map(_local, means)

    def averaged(self, params: Params, state: State) -> Params:
        if not has_averages(state):
            return params
        whole = to_global({"params": params, "state": state})
        return self._put_back(to_per_device(_averaged(whole["params"], whole["state"]), params))

    def rolled_back(self, params: Params, state: State) -> tuple[Params, State]:
        back = roll_back(params, state)
        return self._put_back(back[0]), self._put_back(back[1])

    def saved(self, params: Params, state: State) -> Any:
        return to_global({"params": params, "state": state})

    def loaded(self, tree: Any, params: Params, state: State) -> tuple[Params, State]:
        placed = self._put_back(to_per_device(tree, {"params": params, "state": state}))
        return placed["params"], placed["state"]

    def state_bytes(self, state: State) -> tuple[int, int]:
        return _bytes(to_global(state)), _most_on_a_device(state)

    def _split(self, batch: Any, rows: int) -> Any:
        """[batch, ...] -> [devices, micro-batches, rows, ...], the order in which jit divides it."""
        n = len(self._devices)

        def split(x: np.ndarray) -> np.ndarray:
            return x.reshape(rows, n, x.shape[0] // (rows * n), *x.shape[1:]).swapaxes(0, 1)

        return jax.tree.map(split, batch)


def _averaged(params: Params, state: State) -> Params:
    if not has_averages(state):
        return params
    found = evaluation_params(state, params)
    return jax.tree.map(lambda x, p: jax.device_put(x.astype(p.dtype), p.sharding), found, params)


def _on_mesh(state: State, mesh: Any) -> State:
    """Leaves that a rule without `zero` left on one device, replicated over the mesh."""
    replicated = NamedSharding(mesh, PartitionSpec())

    def place(x: Any) -> Any:
        return x if isinstance(x.sharding, NamedSharding) else jax.device_put(x, replicated)

    return jax.tree.map(place, state)


def _first_copy(results: tuple[Params, State, Metrics]) -> tuple[Params, State, Metrics]:
    params, state, metrics = results
    return params, state, jax.tree.map(_local, metrics)


def _local(x: Any) -> Any:
    """One device's copy of a replicated result; indexing would gather from all of them."""
    return x.addressable_shards[0].data.reshape(x.shape[1:])


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _most_on_a_device(tree: Any) -> int:
    held: dict[Any, int] = {}
    for x in jax.tree.leaves(tree):
        for shard in x.addressable_shards:
            held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    return max(held.values(), default=0)
