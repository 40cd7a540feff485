"""Every rule of the library's list, with its oracle: a new one joins the contracts by both."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_large as jl
from jaxopt_large.rules import RULES as REGISTRY

from . import oracles


def needs_host_memory():
    """Skips the test where JAX moves nothing to the host's memory when it compiles for CPU."""
    if not hasattr(jax, "reshard"):
        pytest.skip("host memory on CPU needs JAX 0.8")


def _bowl(params: Any) -> jax.Array:
    """A loss whose Hessian is three times the identity."""
    return sum(
        (1.5 * jnp.sum(jnp.square(p.astype(jnp.float32))) for p in jax.tree.leaves(params)), jnp.float32(0)
    )


_EXTRA = {"value": 2.0, "obj_fn": _bowl}  # what `update` of some rules needs besides
_DIRECTIONS = {
    "adabelief": "scale_by_belief",
    "sign_sgd": "scale_by_sign",
    "stable_adamw": "scale_by_stable_adam",
    "optimistic_gradient_descent": "scale_by_optimistic_gradient",
    "noisy_sgd": "add_noise",
}


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    ours: Callable[..., Any]
    oracle: Callable[..., Any]
    optax: Callable[..., Any] | None  # None: it has no such rule
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    rate: float = 0.01
    label: str = ""
    unlike: str = ""  # why optax's of this name differs
    notes: frozenset[str] = frozenset()  # see `oracles.tried`

    def rule(self, rate: Any = None, **more: Any) -> Any:
        return self._made(self.ours, rate, more)

    def peer(self, rate: Any = None, **more: Any) -> Any:
        if self.optax is None:
            pytest.skip(
                (self.unlike and f"optax's {self.name}: {self.unlike}") or f"optax has no {self.name}"
            )
        if lacking := self.settings.keys() - inspect.signature(self.optax).parameters.keys():
            pytest.skip(f"optax's {self.name} has no {', '.join(lacking)}")
        return self._made(self.optax, rate, more)

    def _made(self, make: Callable[..., Any], rate: Any, more: dict[str, Any]) -> Any:
        made = make(self.rate if rate is None else rate, **{**self.settings, **more})
        extra = {name: _EXTRA[name] for name in self.notes & _EXTRA.keys()}
        if not extra:
            return made
        return optax.GradientTransformationExtraArgs(made.init, functools.partial(made.update, **extra))

    def scheduled(self, schedule: Callable[[Any], Any]) -> Any:
        """The rule with a schedule, or with its rate where it takes none."""
        return self.rule(None if "no schedule" in self.notes else schedule)

    @property
    def static(self) -> tuple[str, ...]:
        """Arguments that are no numbers, or that shapes depend on: what `inject_hyperparams` must leave alone."""
        whole = {
            **{name: p.default for name, p in inspect.signature(self.ours).parameters.items()},
            **self.settings,
        }
        return tuple(name for name, x in whole.items() if callable(x) or isinstance(x, tuple | str | int))

    def direction(self) -> Any:
        """What the learning rate is multiplied with."""
        self.skip_if("rate inside")
        whole = inspect.signature(self.ours).parameters
        names = (
            _DIRECTIONS.get(self.name),
            f"scale_by_{self.name}",
            f"scale_by_{self.name.removesuffix('w')}",
        )
        make = next(getattr(jl, name) for name in names if name and hasattr(jl, name))
        shared = whole.keys() & inspect.signature(make).parameters.keys()
        direction = make(**{name: self.settings.get(name, whole[name].default) for name in shared})
        if "weight_decay" in shared or "weight_decay" not in self.settings:
            return direction
        decay = jl.add_decayed_weights(self.settings["weight_decay"])
        return optax.chain(*((decay, direction) if self.name in ("dog", "dowg") else (direction, decay)))

    def skip_if(self, *notes: str) -> None:
        """Skips a test that does not hold for rules of these kinds."""
        if found := self.notes & set(notes):
            pytest.skip(f"{self.name}: {', '.join(found)}")

    @property
    def elementwise(self) -> bool:
        return not self.notes & {"whole leaves", "all leaves", "random"}

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of its state that are trees like the parameters."""
        leaves = jax.tree_util.tree_flatten_with_path(jax.eval_shape(self.rule().init, jnp.ones((8, 8))))[0]
        return tuple(path[-1].name for path, x in leaves if x.shape == (8, 8))

    def __str__(self) -> str:
        return self.name + (f"-{self.label}" if self.label else "")


def case_of(name: str, label: str = "", **settings: Any) -> Case:
    """A rule of the library's list, with its oracle's settings or others."""
    oracle = getattr(oracles, name)
    given = settings if label else oracle.settings
    names = {**vars(optax.contrib), **vars(optax)}
    theirs = names.get(oracle.peer) if oracle.peer else None
    return Case(name, REGISTRY[name], oracle, theirs, given, oracle.rate, label, oracle.unlike, oracle.notes)


# those of matrices are in tests/matrix/cases.py
ELEMENTWISE = [name for name, make in REGISTRY.items() if "roles" not in inspect.signature(make).parameters]
RULES = [case_of(name) for name in ELEMENTWISE]

VARIANTS = [
    *RULES,
    case_of("sgd", "nesterov", momentum=0.9, nesterov=True),
    case_of("adam", "nesterov", nesterov=True, b2=0.98),
    case_of("adam", "b1=0", b1=0.0, eps_root=1e-8),
    case_of("rmsprop", "centered", centered=True),
    case_of("rmsprop", "momentum", momentum=0.9, nesterov=True, eps_in_sqrt=False, initial_scale=1.0),
    case_of("rmsprop", "corrected", bias_correction=True, decay=0.99, momentum=0.5),
    case_of("adagrad", "eps outside", eps_in_sqrt=False),
    case_of("nadam", "schedule", momentum_decay=0.004),
    case_of("radam", "nesterov", nesterov=True, weight_decay=0.1),
    case_of("radam", "default"),
    case_of("amsgrad", "torch", corrected_last=True),
    case_of("amsgrad", "paper", bias_correction_mu=False, bias_correction_nu=False),
    case_of("adabelief", "nesterov", nesterov=True, weight_decay=0.1),
    case_of("adopt", "plain", use_clipping=False, nesterov=True, weight_decay=0.1),
    case_of("lars", "nesterov", nesterov=True, trust_coefficient=0.1),
    case_of("optimistic_adam", "optimism", optimism=0.1),
    case_of("polyak_sgd", "plus", variant="sps+", f_min=3.0, scaling=0.5),
    case_of("dog", "distance", init_step=("distance", 0.1)),
    case_of("dog", "learning rate", init_step=("learning_rate", 0.01)),
    case_of("dowg", "begun", init_estim_sq_dist=0.1),
    case_of("rprop", "others", eta_minus=0.7, eta_plus=1.1, min_step_size=0.005, max_step_size=0.05),
    case_of("adafactor", "whole", factored=False, weight_decay_rate=0.01),
    case_of(
        "adafactor",
        "unscaled",
        multiply_by_parameter_scale=False,
        clipping_threshold=0.5,
        min_dim_size_to_factor=4,
    ),
    case_of("came", "unclipped", clipping_threshold=10.0),
    case_of("prodigy", "safeguard", safeguard_warmup=True, estim_lr0=1.0, beta3=0.95),
    case_of("sophia", "unclipped", clip_threshold=1e9, gamma=1.0),
]

# one of each kind of state and of arithmetic; where a contract is slow, the others are marked `full`
KINDS = ("sgd", "rmsprop", "adamw", "lion", "adan", "adafactor", "sm3", "adam_mini", "lamb", "prodigy")


def every_kind(function: Any) -> Any:
    """Parametrizes by all rules; those whose kind another has are marked `full`."""
    others = tuple(str(case) for case in RULES if str(case) not in KINDS)
    return pytest.mark.parametrize("case", some_of(RULES, *others))(function)


def bits_of(x: Any) -> bytes:
    """An array's, also of a random key."""
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x).tobytes()


every_rule = pytest.mark.parametrize("case", RULES, ids=str)
every_variant = pytest.mark.parametrize("case", VARIANTS, ids=str)


def _full(is_left: Any) -> Any:
    return pytest.mark.full if is_left else ()


def in_turn(name: str, xs: Any, other: str, ys: Any, *, left: tuple[str, ...] = ()) -> Any:
    """Parametrizes by all pairs of x and y; those of each x with one y, in turn, are not marked `full`.

    Of xs in `left`, of which others are of the same kind, all pairs are.
    """
    assert set(left) < set(map(str, xs)) or not left, left
    return pytest.mark.parametrize(
        (name, other),
        [
            pytest.param(x, y, id=f"{x}-{y}", marks=_full((i + j) % len(ys) or str(x) in left))
            for i, x in enumerate(xs)
            for j, y in enumerate(ys)
        ],
    )


def some_of(names: Any, *left: str) -> list[Any]:
    """Names as parameters; those of `left`, of which others are of the same kind, are marked `full`."""
    assert set(left) < set(map(str, names)), left
    return [pytest.param(n, marks=_full(str(n) in left), id=str(n)) for n in names]


def mixed_params(dtype: Any = jnp.float32) -> Any:
    """Leaves of every kind: matrix, stack, vector, scalar, zero-size, None, nested and odd lengths."""
    r = np.random.default_rng(0)

    def leaf(*shape: int) -> jax.Array:
        return jnp.asarray(r.normal(size=shape), dtype)

    return {
        "dense": {"kernel": leaf(16, 24), "bias": leaf(10)},
        "layers": [leaf(4, 8, 16), None],
        "odd": leaf(3, 5),
        "scale": leaf(),
        "empty": leaf(0, 3),
    }


def like(params: Any, seed: int, scale: float = 1.0) -> Any:
    """Random gradients of the parameters' shapes and dtypes."""
    r = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(scale * r.normal(size=p.shape), p.dtype), params)
