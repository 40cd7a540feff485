"""A stage: what a rule keeps for a leaf, and what it does to one."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import optax
from jaxtyping import Array

from ._errors import message
from ._state_fields import LeafField, SharedField, StaticField
from ._states import described
from ._types import State

Needs = Literal["elements", "axes", "leaf"]
_NO_STATE = optax.EmptyState()


@dataclasses.dataclass(frozen=True)
class LeafStep:
    """What a call of a rule's step on a leaf is, for who reads a traced update; `needs` as in `Stage`."""

    who: str
    needs: Needs


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a rule does to one leaf. Arrays are in the leaf's accumulation dtype throughout.

    Attributes:
      step: (shared, gradient, parameter, kept) -> (update, kept). `kept` is the state's NamedTuple with the
        arrays of this leaf; what all leaves share is in it as it was before the step, or None where `shared`
        is given, but for random keys, of which each leaf has its own. What comes back in a shared field does
        not count. A stage that measures gets the sums of its leaf as a fifth argument.
      state: the state's NamedTuple with a field in each place, made by `zeros`, `constant`, `shaped`,
        `count`, `shared` or `random_key`; None for one that is not kept.
      shared: from the state, without the arrays of leaves, what all leaves share in this step: any tree.
      measure: (shared, gradient, parameter, kept) -> sums over the elements of a leaf, any tree of numbers.
        They are added up over the devices that share the leaf, in one exchange per step. Leaves that
        the mask leaves out count nothing. The stages before it take one more call per leaf.
      combine: (shared, state, totals) -> (shared, state): what all leaves share, and the shared fields, from
        the sums over all leaves. It needs `measure`. A shared field that it leaves as it was, the same
        object, goes on by itself.
      needs: what a step must see. "elements": each element depends on its own and on what is shared; devices
        may hold shares of a leaf. "axes": also the leaf's size, and sums along its axes, which it has from
        `measure`; both use `size_of`, `sum_along` and `along`. "leaf": a whole leaf, as matrix products do.
      needs_params: whether the parameter is read.
      mask: a glob, a tree of booleans, a prefix of one, or a function from parameters to one. Where it is
        False the stage passes the gradient on and keeps its fields.
      scheduled: the name of the hyper-parameter that a schedule gives, as `shared`.
      extra: names of further arguments of `update`, which `shared` gets by keyword.
      is_real: whether its arithmetic is of real numbers: complex leaves are refused.
      by_path: from a leaf's path, what `step` and `measure` get as `place`: static, and comparable.
    """

    step: Callable[..., tuple[Array, Any]]
    state: Any = _NO_STATE
    shared: Callable[..., Any] | None = None
    measure: Callable[..., Any] | None = None
    combine: Callable[[Any, Any, Any], tuple[Any, Any]] | None = None
    needs: Needs = "elements"
    needs_params: bool = False
    mask: Any = None
    scheduled: str = ""
    extra: tuple[str, ...] = ()
    is_real: bool = False
    by_path: Callable[[str], Any] | None = None

    def __post_init__(self) -> None:
        if self.extra and self.shared is None:
            raise ValueError(message("Stage", f"extra is {self.extra}, and shared, which gets them, is None"))
        if self.combine is not None and self.measure is None:
            raise ValueError(
                message("Stage", "combine is given without measure", do="Say what is to be summed")
            )

    @functools.cached_property
    def kinds(self) -> dict[str, Any]:
        """The fields that are kept, by name."""
        names = getattr(self.state, "_fields", ())
        return {name: kind for name, kind in zip(names, self.state, strict=True) if kind is not None}

    @property
    def of_leaves(self) -> list[str]:
        """The names of the fields that are trees like the parameters."""
        return [name for name, kind in self.kinds.items() if isinstance(kind, LeafField)]

    @property
    def of_all(self) -> list[str]:
        """The names of the fields that all leaves share."""
        return [name for name, kind in self.kinds.items() if isinstance(kind, SharedField)]

    @property
    def of_none(self) -> list[str]:
        """The names of the fields that are no arrays."""
        return [name for name, kind in self.kinds.items() if isinstance(kind, StaticField)]


def check_states(who: str, stages: Sequence[Stage], states: Any, state: State) -> None:
    """Raises where a state is not one of this rule; all of it is known when a function is traced."""
    wrong = None
    if not isinstance(states, tuple | list) or hasattr(states, "_fields") or len(states) != len(stages):
        wrong = f"expected a tuple of {len(stages)}, got {described(state)}"
    else:
        for i, (stage, st) in enumerate(zip(stages, states, strict=True)):
            if not _is_of(stage, st):
                at = f" at {i}" if states is state else ""
                wrong = f"expected {described(type(stage.state))}{at}, got {described(st)}"
                break
    if wrong is not None:
        do = "Pass what this rule's init or update has returned"
        raise ValueError(message(who, f"the state is not one of {who}: {wrong}", do=do))


def _is_of(stage: Stage, state: Any) -> bool:
    """Is it the stage's state, or one of that name or with those fields, as optax's are?"""
    kind, ours, kept = type(state), type(stage.state), list(stage.kinds)
    fields = getattr(ours, "_fields", ())
    if kind.__name__ == ours.__name__:
        others = ()
    elif getattr(kind, "_fields", None) == fields:
        others = tuple(name for name in fields if name not in kept)
    else:
        return False
    optional = [name for name in stage.of_none if not stage.kinds[name].is_needed]
    there = all(getattr(state, name, None) is not None for name in kept if name not in optional)
    return there and all(getattr(state, name) is None for name in others)
