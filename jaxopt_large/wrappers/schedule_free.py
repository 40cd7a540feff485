"""Schedule-free learning: averages in the place of a schedule (Defazio et al. 2024)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._hyperparameters import Decay, NonNegative, Rate, StateDtype, checked
from .._numerics import accumulation_dtype, as_scalar, divide, like, safe_increment, scalar_dtype, times
from .._states import check_state
from .._types import Params, Rule, State, Updates, make_rule
from .._wrapped import Inner
from ..leafwise import Stage, first_parameters, joined, lift
from ..rules.learning_rate import checked_rate, scale_by_learning_rate
from ..rules.rmsprop import scale_by_rmsprop
from ..rules.weight_decay import decay_of

__all__ = ["schedule_free", "schedule_free_adamw", "schedule_free_eval_params", "schedule_free_sgd"]


class ScheduleFreeState(NamedTuple):
    """State of `schedule_free`."""

    b1: Float[Array, ""]
    weight_sum: Float[Array, ""]
    step_count: Int[Array, ""]  # steps taken, and one
    max_lr: Float[Array, ""]  # the largest so far
    base_optimizer_state: State  # the wrapped rule's
    z: Updates  # parameters that the rule moves, float32

    def averaged_field(self) -> Updates:
        """What `evaluation_params` reads."""
        return self.z

    def average(self, kept: Array, p: Array) -> Array:
        """Of a parameter, given its array in that field."""
        b1 = like(self.b1, p)
        safe = jnp.where(b1 == 0, jnp.ones((), b1.dtype), b1)
        # from z, of which y and x differ little: less is lost than in a quotient of large numbers
        return jnp.where(b1 == 0, kept, kept + times(1.0 / safe, p - kept))


class _ZState(NamedTuple):
    z: Updates


class _Weights(NamedTuple):
    share: Array  # of the new z in the average
    kept: Array  # of the update, in y


@checked
def schedule_free(
    rule: Any,
    learning_rate: Rate,
    b1: Decay = 0.9,
    weight_lr_power: NonNegative = 2.0,
    state_dtype: StateDtype = None,
) -> Rule:
    r"""Schedule-free learning, around any rule without momentum.

    The rule moves $z$; the loss is differentiated at $y$, which the loop holds as its parameters; $x$ is
    their average, for evaluation. With $u_t$ the rule's update for the gradient at $y_t$,
    $w_t = \max_{i \le t} \eta_i^{\,r}$ and $c_t = w_t / \sum_{i \le t} w_i$:

    $$z_{t+1} = z_t + u_t, \qquad x_{t+1} = (1-c_t) x_t + c_t z_{t+1}, \qquad
      y_{t+1} = b_1 x_{t+1} + (1-b_1) z_{t+1}$$

    $x$ is not kept: $y_{t+1} - y_t = c_t (z_t - y_t) + (1 - b_1 (1-c_t)) u_t$ has no need of it, as in the
    authors' program, and `schedule_free_eval_params(state, params)` finds it.

    Args:
      rule: any rule, with `learning_rate` inside, and without momentum. `zero(schedule_free(rule, ...), ...)`
        divides $z$ too.
      learning_rate: $\eta$, the rule's: a number >= 0, or a schedule, such as a warm-up. It is called with
        the number of steps taken before.
      b1: $b_1$ in [0, 1), in the place of momentum.
      weight_lr_power: $r \ge 0$.
      state_dtype: floating dtype of $z$; by default float32 (float64 for float64).

    Returns:
      The rule; its `update` needs `params`.

    Raises:
      TypeError: rule is not a rule.
      ValueError: a value is out of range, or the dtype is not a floating one.

    Source: Defazio et al. 2024, arXiv:2405.15682, equations 1 to 3; names as in optax.

    >>> rule, params = jl.schedule_free(jl.sgd(1.0), 1.0, b1=0.5), jnp.float32(0.0)
    >>> state = rule.init(params)
    >>> for _ in range(2):
    ...     updates, state = rule.update(jnp.float32(-1.0), state, params)
    ...     params = params + updates
    >>> float(params), float(state.z), float(jl.schedule_free_eval_params(state, params))
    (1.75, 2.0, 1.5)
    """
    wrapped = Inner("schedule_free", rule)

    def weights(kept: Any, *, weights: Any) -> _Weights:
        del kept
        return weights

    def step(weights: _Weights, u: Array, y: Array, kept: _ZState) -> tuple[Array, Any]:
        moved = times(weights.share, kept.z - y) + times(weights.kept, u)
        return moved, _ZState(kept.z + u)

    stage = Stage(
        step, _ZState(first_parameters(state_dtype)), weights, needs_params=True, extra=("weights",)
    )
    own = lift("schedule_free", stage, chained=False)

    def init(params: Params) -> ScheduleFreeState:
        begun: Any = own.init(params)
        zero = jnp.zeros((), scalar_dtype())
        first = jnp.ones((), jnp.int32)
        return ScheduleFreeState(as_scalar(b1), zero, first, zero.copy(), wrapped.init(params), begun.z)

    def update(
        updates: Updates, state: ScheduleFreeState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScheduleFreeState]:
        check_state("schedule_free", ScheduleFreeState, state)
        rate = checked_rate("schedule_free", learning_rate, state.step_count - 1)
        max_lr = jnp.maximum(state.max_lr, rate.astype(state.max_lr.dtype))
        weight = max_lr ** as_scalar(weight_lr_power)
        total = state.weight_sum + weight
        share = divide(weight, total)
        made, inner = wrapped.update(updates, state.base_optimizer_state, params, extra)
        both = _Weights(share, 1.0 - state.b1 * (1.0 - share))
        made, new = own.update(made, _ZState(state.z), params, weights=both)
        kept: Any = new
        taken = safe_increment(state.step_count)
        return made, ScheduleFreeState(state.b1, total, taken, max_lr, inner, kept.z)

    return make_rule(init, update)


def schedule_free_eval_params(state: ScheduleFreeState, params: Params) -> Params:
    r"""The averaged parameters, to evaluate and to keep: $x = (y - (1-b_1) z) / b_1$; $z$ where $b_1$ is 0.

    Args:
      state: of `schedule_free`, as its `init` or `update` has returned it.
      params: those of the loop, $y$.

    Returns:
      $x$, in float32 (float64 for float64).
    """

    def average(y: Array, z: Array) -> Array:
        dtype = accumulation_dtype(y.dtype)
        return ScheduleFreeState.average(state, z.astype(dtype), y.astype(dtype))

    return jax.tree.map(average, params, state.z)


@checked
def schedule_free_adamw(
    learning_rate: Rate = 0.0025,
    warmup_steps: Any = None,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: Rate = 0.0,
    weight_lr_power: NonNegative = 2.0,
    state_dtype: StateDtype = None,
) -> Rule:
    r"""Schedule-free AdamW: no momentum of its own, and no schedule but a warm-up.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule; some times what a schedule
        would have for its peak.
      warmup_steps: $w$: the rate of step $t$, from 0, is $\eta \min(1, (t+1)/w)$, as its authors have it;
        None or 0 for none.
      b1: $b_1$ in [0, 1), in the place of momentum.
      b2: $b_2$ in [0, 1), decay of the mean square.
      eps: $\epsilon \ge 0$, outside the root.
      weight_decay: $\lambda$, at $y$; multiplied by the rate.
      weight_lr_power: see `schedule_free`.
      state_dtype: see `schedule_free`.

    Returns:
      The rule; its `update` needs `params`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Source: Defazio et al. 2024, arXiv:2405.15682, algorithm 1.
    """
    rate = warmed_up(learning_rate, warmup_steps)
    direction = scale_by_rmsprop(b2, eps, 0.0, False, False, True)
    links = (direction, *decay_of(weight_decay), scale_by_learning_rate(rate))
    base = joined("schedule_free_adamw", *links)
    return schedule_free(base, rate, b1, weight_lr_power, state_dtype)


@checked
def schedule_free_sgd(
    learning_rate: Rate = 1.0,
    warmup_steps: Any = None,
    b1: Decay = 0.9,
    weight_decay: Rate | None = None,
    weight_lr_power: NonNegative = 2.0,
    state_dtype: StateDtype = None,
) -> Rule:
    r"""Schedule-free SGD.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      warmup_steps: see `schedule_free_adamw`.
      b1: $b_1$ in [0, 1), in the place of momentum.
      weight_decay: $\lambda$, at $y$; times the parameter it is added to the gradient. None for none.
      weight_lr_power: see `schedule_free`.
      state_dtype: see `schedule_free`.

    Returns:
      The rule; its `update` needs `params`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Source: Defazio et al. 2024, arXiv:2405.15682, equations 1 to 3.
    """
    rate = warmed_up(learning_rate, warmup_steps)
    decay = decay_of(0.0 if weight_decay is None else weight_decay)
    base = joined("schedule_free_sgd", *decay, scale_by_learning_rate(rate))
    return schedule_free(base, rate, b1, weight_lr_power, state_dtype)


def warmed_up(learning_rate: Any, warmup_steps: Any) -> Any:
    """A rate that grows linearly to its value, which it has in the last step of the warm-up."""
    if not warmup_steps:
        return learning_rate

    def rate(count: Array) -> Array:
        grown = jnp.minimum(safe_increment(count).astype(scalar_dtype()) / as_scalar(warmup_steps), 1.0)
        return grown * as_scalar(learning_rate(count) if callable(learning_rate) else learning_rate)

    return rate
