"""optax's rules, for the contracts that hold for any rule."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class Peer:
    """A rule of optax's.

    Attributes:
      make: makes it.
      elementwise: does each update depend on its own element only? Others sum over leaves.
      extra: names of what `update` takes besides.
      scalars: does it take parameters of shape ()?
      rounding: how far the parameters may be off after a few steps. 0: bit for bit. XLA:CPU fuses some
        rules' per-step scalars into their loops or not, as shapes suit it, and rounds once more.
    """

    name: str
    make: Callable[[], Any]
    elementwise: bool = True
    extra: tuple[str, ...] = ()
    scalars: bool = True
    rounding: float = 0.0

    def __str__(self) -> str:
        return self.name


def _matrices(tree: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim >= 2, tree)


def _nested() -> Any:
    inner = optax.masked(optax.adam(1e-2), _matrices)
    return optax.chain(optax.masked(optax.chain(inner, optax.trace(0.9)), _matrices), optax.scale(0.5))


_ALIASES = ["adabelief", "adadelta", "adagrad", "adam", "adamax", "adamaxw", "adamw", "adan", "amsgrad"]
_ALIASES += [
    "lion",
    "nadam",
    "nadamw",
    "optimistic_adam_v2",
    "radam",
    "rmsprop",
    "rprop",
    "sgd",
    "sign_sgd",
    "yogi",
]
_REDUCING = ["fromage", "lamb", "lars", "novograd", "sm3"]
_CONTRIB = ["acprop", "ademamix", "simplified_ademamix"]
_CONTRIB_REDUCING = ["cocob", "dadapt_adamw", "dog", "dowg", "muon", "prodigy"]


_RATE_FREE = ("cocob", "dog", "dowg")
# five products in a row: sharded along two dimensions, their sums of other order leave 1.01e-6 of the update
_ROUNDING = {"muon": 2e-6}
_FUSED_OTHERWISE = ("adan", "nadam", "nadamw", "optimistic_adam_v2", "radam", "ademamix", "adabelief")


def _alias(module: Any, name: str, elementwise: bool) -> Peer:
    make = getattr(module, name)
    return Peer(
        name,
        (lambda: make()) if name in _RATE_FREE else (lambda: make(1e-2)),
        elementwise,
        scalars=name != "sm3",
        rounding=_ROUNDING.get(name, 1e-6 if name in _FUSED_OTHERWISE or not elementwise else 0.0),
    )


PEERS = [
    *[_alias(optax, name, True) for name in _ALIASES],
    *[_alias(optax.contrib, name, True) for name in _CONTRIB],
    *[_alias(optax, name, False) for name in _REDUCING],
    *[_alias(optax.contrib, name, name == "cocob") for name in _CONTRIB_REDUCING],
    Peer(
        "adafactor", lambda: optax.adafactor(1e-2, min_dim_size_to_factor=4), elementwise=False, rounding=1e-6
    ),
    Peer("momentum", lambda: optax.sgd(1e-2, momentum=0.9, nesterov=True)),
    Peer(
        "clip+adamw",
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2)),
        elementwise=False,
        rounding=1e-6,
    ),
    Peer("schedule_free", lambda: optax.contrib.schedule_free_adamw(1e-2), rounding=1e-4),
    Peer("multisteps", lambda: optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation()),
    Peer(
        "inject",
        lambda: optax.inject_hyperparams(optax.adamw)(learning_rate=optax.linear_schedule(1e-2, 0.0, 10)),
    ),
    Peer("nested masked", _nested),
    Peer(
        "ema", lambda: optax.chain(optax.scale_by_adam(), optax.ema(0.9), optax.scale(-1e-2)), rounding=1e-6
    ),
    Peer(
        "apply_if_finite",
        lambda: optax.apply_if_finite(optax.adam(1e-2), 3),
        elementwise=False,
        rounding=1e-6,
    ),
    Peer("mechanic", lambda: optax.contrib.mechanize(optax.adam(1e-2)), elementwise=False, rounding=1e-6),
    # it divides by differences of gradients
    Peer(
        "lbfgs", lambda: optax.lbfgs(1e-2, memory_size=3, linesearch=None), elementwise=False, rounding=1e-4
    ),
    Peer("polyak", lambda: optax.polyak_sgd(1.0), elementwise=False, rounding=1e-6, extra=("value",)),
]


def extras(peer: Any) -> dict[str, Any]:
    """What `update` takes besides gradients, state and parameters."""
    values = {"value": jnp.float32(2.0)}
    return {name: values[name] for name in getattr(peer, "extra", ())}
