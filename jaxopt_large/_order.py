"""Which wrapper may hold which: the orders that cannot work, with the reason and what to write instead."""

import contextlib
import enum
from collections.abc import Iterator
from contextvars import ContextVar
from typing import NamedTuple

from ._axes import declared
from ._errors import message


class Wrapper(enum.Enum):
    """Wrappers whose order matters; the value is the name that users know."""

    EACH_STEP = "cautious, lookahead, ema_of_params, schedule_free, mechanic or decoupled"
    ACCUMULATE_DEFERRED = "accumulate"
    ACCUMULATE_SKIPS = "accumulate(nonfinite='skip_micro_batch')"
    ACCUMULATE_SHARDED = "accumulate(mode='sharded')"
    APPLY = "apply"
    LEAVES_OUT = "skip_nonfinite or skip_spikes"
    LOSS_SCALE = "dynamic_loss_scale"
    OFFLOAD = "offload"
    SKIP_BY_DEVICE = "skip_nonfinite"  # inside a mapped axis whose name it does not know
    STORED = "stored"
    STORED_PARAMETERS = "stored(params=...)"  # whose parameters are not what a rule has made of them
    ZERO = "zero"
    ZERO_MAPPED = "zero(axis_name=...)"


class Refused(NamedTuple):
    """An order that cannot work: `inner` inside `outer`; inside `zero` of both kinds it is `ZERO`."""

    inner: Wrapper
    outer: Wrapper
    wrong: str
    do: str
    allowed: str = ""


_W = Wrapper
_REDUCED = "mode 'deferred' is inside zero, which has reduced the gradients already"
_ACCUMULATORS = "the rule is inside accumulate(mode='sharded'), whose accumulators it would not divide"
_APART = "the rule is inside skip_nonfinite, where each device would decide by its own gradients"
_WHOLE = "the rule is inside stored, which would see whole leaves on every device"
_TWICE = "the rule is inside another zero"

_BY_STEPS = "accumulate is inside cautious, lookahead, ema_of_params, schedule_free, mechanic or decoupled"
_MICRO = "these count and compare updates, which are 0 in all micro-steps but the last"
_AROUND = "Write accumulate(cautious(rule), steps), and so for the others"

ORDERS = (
    Refused(_W.ACCUMULATE_DEFERRED, _W.EACH_STEP, _BY_STEPS, _AROUND, _MICRO),
    Refused(_W.ACCUMULATE_SHARDED, _W.EACH_STEP, _BY_STEPS, _AROUND, _MICRO),
    Refused(
        _W.ACCUMULATE_DEFERRED,
        _W.ZERO,
        _REDUCED,
        "Write accumulate(zero(...), ..., mode='deferred'), or use mode 'sharded'",
    ),
    Refused(
        _W.LOSS_SCALE,
        _W.ACCUMULATE_SKIPS,
        "the rule is inside accumulate, which leaves out micro-batches that overflow and hides them",
        "Write dynamic_loss_scale(accumulate(rule, steps, nonfinite='keep'))",
    ),
    Refused(
        _W.LOSS_SCALE,
        _W.LEAVES_OUT,
        "the rule is inside skip_nonfinite or skip_spikes, which would leave out what lowers the scale",
        "Write dynamic_loss_scale(skip_spikes(rule)); it leaves out what is not finite itself",
    ),
    Refused(_W.OFFLOAD, _W.ZERO, "the rule is inside zero", "Write offload(zero(rule, ...))"),
    Refused(_W.OFFLOAD, _W.STORED, "the rule is inside stored", "Write offload(stored(rule, ...))"),
    Refused(_W.STORED, _W.STORED, "is inside another stored", "Name all fields in one"),
    Refused(_W.ZERO, _W.ACCUMULATE_SHARDED, _ACCUMULATORS, "Write zero(accumulate(rule, steps), ...)"),
    Refused(_W.ZERO_MAPPED, _W.ACCUMULATE_SHARDED, _ACCUMULATORS, "Write zero(accumulate(rule, steps), ...)"),
    Refused(
        _W.ZERO_MAPPED,
        _W.SKIP_BY_DEVICE,
        _APART,
        "Write zero(skip_nonfinite(rule), axis_name=...), or give skip_nonfinite its axis_name",
    ),
    Refused(_W.ZERO, _W.STORED, _WHOLE, "Write zero(stored(rule, ...), ...)"),
    Refused(_W.ZERO_MAPPED, _W.STORED, _WHOLE, "Write zero(stored(rule, ...), ...)"),
    Refused(_W.ZERO, _W.ZERO, _TWICE, "Drop one", "one zero divides the state"),
    Refused(_W.ZERO_MAPPED, _W.ZERO, _TWICE, "Drop one", "one zero divides the state"),
)

_shares: ContextVar[bool] = ContextVar("shares", default=False)
_planned: ContextVar[bool] = ContextVar("planned", default=False)
_surroundings: ContextVar[tuple[Wrapper, ...]] = ContextVar("surroundings", default=())


@contextlib.contextmanager
def inside(wrapper: Wrapper) -> Iterator[None]:
    """Declares that rules inside the block are wrapped by `wrapper`."""
    with declared(_surroundings, (*_surroundings.get(), wrapper)):
        yield


def is_inside(wrapper: Wrapper) -> bool:
    """Has a wrapper announced itself around this?"""
    return wrapper in _surroundings.get()


@contextlib.contextmanager
def asking_for_shares(wanted: bool) -> Iterator[None]:
    """Declares that who is around gathers the new parameters: of changes each device's share will do."""
    with declared(_shares, wanted):
        yield


def shares_wanted() -> bool:
    """May changes stay divided as the state is?"""
    return _shares.get()


@contextlib.contextmanager
def planning() -> Iterator[None]:
    """Declares that what is traced is only looked at: constraints on abstract meshes belong in it."""
    with declared(_planned, True):
        yield


def is_planned() -> bool:
    """Is the trace for a plan?"""
    return _planned.get()


def check_order(wrapper: Wrapper) -> None:
    """Raises where a wrapper stands inside one inside which it cannot do its work.

    Raises:
      ValueError: it does; the message says what to write.
    """
    for order in ORDERS:
        if order.inner is wrapper and is_inside(order.outer):
            who = wrapper.value.split("(")[0]
            raise ValueError(message(who, order.wrong, allowed=order.allowed, do=order.do))
