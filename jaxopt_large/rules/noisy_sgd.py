"""Noisy SGD: noise that fades, added to the gradient (Neelakantan et al. 2014)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from .._errors import message
from .._hyperparameters import NonNegative, Rate, checked
from .._numerics import as_scalar, is_complex, real_dtype, safe_increment, scalar_dtype, times
from .._types import Rule
from ..leafwise import Stage, along, count, joined, lift, random_key, shape_of
from ._registry import rule
from .learning_rate import scale_by_learning_rate

__all__ = ["add_noise", "noisy_sgd"]


class AddNoiseState(NamedTuple):
    """State of added noise."""

    count: Int[Array, ""]  # steps taken
    rng_key: Key[Array, ""]  # of the next step


@checked
def add_noise(
    eta: NonNegative = 0.01, gamma: NonNegative = 0.55, key: Any = None, *, seed: Any = None
) -> Rule:
    r"""Adds noise that fades: $u_t = g_t + \mathcal{N}(0, \sigma^2 / (1+t)^\gamma)$, see `noisy_sgd`.

    Raises:
      ValueError: eta or gamma is negative.
      TypeError: both a key and a seed are given.
    """
    start = _start("add_noise", key, seed)

    def deviation(kept: AddNoiseState) -> Array:
        n = safe_increment(kept.count).astype(scalar_dtype())
        return jnp.sqrt(as_scalar(eta)) * jnp.exp(-0.5 * as_scalar(gamma) * jnp.log(n))

    def step(deviation: Array, g: Array, p: Any, kept: AddNoiseState) -> tuple[Array, Any]:
        del p
        # of the whole leaf: devices that share it draw the same, and each takes its part
        noise = along(_normal(kept.rng_key, shape_of(g), g), (), g)
        return g + times(deviation, noise), kept

    state = AddNoiseState(count(), random_key(start))
    return lift("add_noise", Stage(step, state, deviation, needs="axes"), chained=False)


@rule
def noisy_sgd(
    learning_rate: Rate,
    eta: NonNegative = 0.01,
    gamma: NonNegative = 0.55,
    key: Any = None,
    *,
    seed: Any = None,
) -> Rule:
    r"""SGD with annealed gradient noise.

    $$\theta_{t+1} = \theta_t - \eta_t \left( g_t + \mathcal{N}(0, \sigma^2 / (1+t)^\gamma) \right)$$

    with $t$ steps taken before. The noise does not depend on how leaves are divided between
    devices: each draws that of whole leaves.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      eta: $\sigma^2 \ge 0$, the variance of the first step's noise, in squared units of the gradient.
      gamma: $\gamma \ge 0$, how fast it fades.
      key: a random key or a whole number; 0 by default.
      seed: another name of `key`, as in optax; one of the two.

    Returns:
      The rule; its state holds `count` and `rng_key`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Source: Neelakantan et al. 2014, arXiv:1511.06807, section 3.
    """
    noise = add_noise(eta, gamma, _start("noisy_sgd", key, seed))
    return joined("noisy_sgd", noise, scale_by_learning_rate(learning_rate))


def _start(who: str, key: Any, seed: Any) -> Any:
    """What the noise begins with."""
    if key is not None and seed is not None:
        raise TypeError(message(who, f"key and seed are both given, got {key!r} and {seed!r}"))
    given = seed if key is None else key
    return 0 if given is None else given


def _normal(key: Key[Array, ""], shape: tuple[int, ...], x: Array) -> Array:
    if not is_complex(x):
        return jax.random.normal(key, shape, x.dtype)
    parts = jax.random.normal(key, (2, *shape), real_dtype(x.dtype))
    return jax.lax.complex(parts[0], parts[1])
