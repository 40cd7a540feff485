"""Whose state is it? Errors for states of other rules, and where they part from those that were expected."""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax

from ._errors import message
from ._paths import leaf_paths, path_string

_DO = "Pass what this rule's init or update has returned"


def check_state(who: str, expected: type, state: Any) -> None:
    """Raises unless a state is of the NamedTuple that a rule keeps.

    Raises:
      TypeError: it is not.
    """
    if not isinstance(state, expected):
        raise TypeError(
            message(
                who,
                f"the state is not one of {who}, got {described(state)}",
                allowed=f"a {described(expected)}",
                do=_DO,
            )
        )


def described(x: Any) -> str:
    """The kind of a state, for an error message.

    >>> described(optax.EmptyState()), described((1, 2)), described(jnp.ones(3)), described(None)
    ('EmptyState', 'a tuple of 2', 'float32[3]', 'None')
    """
    kind = x if isinstance(x, type) else type(x)
    if hasattr(kind, "_fields"):
        return kind.__name__ + (f"({', '.join(kind._fields)})" if kind._fields else "")
    if x is None or isinstance(x, str | int | float):
        return repr(x)
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        return f"{x.dtype}[{','.join(map(str, x.shape))}]"
    if isinstance(x, tuple | list):
        return f"a {kind.__name__} of {len(x)}"
    if isinstance(x, dict):
        return f"a dict of {', '.join(map(repr, list(x)[:5]))}"
    return f"a {kind.__name__}"


def parting(expected: Any, got: Any, *, shapes: bool = False) -> str | None:
    """Where two states part, in words; None where they do not.

    Args:
      expected: a state, or its shapes.
      got: another.
      shapes: do shapes and dtypes of leaves count?

    >>> parting((optax.scale_by_adam().init(1.0),), (optax.scale_by_lion().init(1.0),))
    'expected ScaleByAdamState(count, mu, nu) at 0, got ScaleByLionState(count, mu)'
    """
    if shapes is False and jax.tree.structure(expected) == jax.tree.structure(got):
        return None
    pending: list[tuple[tuple[Any, ...], Any, Any]] = [((), expected, got)]
    while pending:
        path, want, have = pending.pop()
        ours, theirs = _children(want), _children(have)
        if ours is None and theirs is None:
            same = not shapes or _kind(want) == _kind(have)
        else:
            same = (
                type(want) is type(have)
                and ours is not None
                and theirs is not None
                and [k for k, _ in ours] == [k for k, _ in theirs]
                and (bool(ours) or jax.tree.structure(want) == jax.tree.structure(have))
            )
        if not same:
            at = path_string(path)
            return f"expected {described(want)}{f' at {at}' if at else ''}, got {described(have)}"
        pending += reversed(
            [((*path, k), a, b) for (k, a), (_, b) in zip(ours or (), theirs or (), strict=True)]
        )
    return None


def _children(x: Any) -> list[tuple[Any, Any]] | None:
    """(key, child) of a node; None for a leaf."""
    found = jax.tree_util.tree_flatten_with_path(x, is_leaf=lambda y: y is not x)[0]
    return None if len(found) == 1 and not found[0][0] else [(path[0], child) for path, child in found]


def _kind(x: Any) -> Any:
    return tuple(getattr(x, "shape", ())), str(getattr(x, "dtype", type(x).__name__))


@contextlib.contextmanager
def explained(who: str, init: Callable[[Any], Any], state: Any, updates: Any, params: Any) -> Iterator[None]:
    """Errors inside that come of a state of another rule, or of missing gradients, say so; all others pass.

    Args:
      who: for the error.
      init: the rule's; it is only asked when something went wrong.
      state: that was given.
      updates: the gradients that were given; None in the place of one that is missing.
      params: the parameters, or None where they are not known.

    Raises:
      ValueError: the state is not what `init` gives, or a gradient is missing.
    """
    try:
        yield
    except (TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
        if getattr(error, "is_explained", False) or isinstance(error, jax.errors.JAXTypeError):
            raise
        wrong = None if _says_enough(error) else _wrong(who, init, state, updates, params)
        if wrong is None:
            raise
        told = ValueError(wrong)
        told.is_explained = True  # type: ignore[attr-defined]
        raise told from error


def _says_enough(error: Exception) -> bool:
    """Is it an error of ours that is not about trees and fields, which part for a reason?"""
    text = str(error)
    about_trees = re.search("structure|of another|field|not one of|there are", text)
    return "gradient is missing" in text or bool(re.match(r"[a-z_]+: ", text) and not about_trees)


def _wrong(who: str, init: Callable[[Any], Any], state: Any, updates: Any, params: Any) -> str | None:
    like = updates if params is None else params
    try:
        parted = parting(jax.eval_shape(lambda p: init(p), like), state)
    except Exception:  # whatever a rule says of parameters that it was not given
        parted = None
    if parted is not None:
        return message(who, f"the state is not one of this rule: {parted}", do=_DO)
    there = set(leaf_paths(updates))
    missing = [path for path in leaf_paths(like, is_leaf=lambda x: x is None) if path not in there]
    if not missing:
        return None
    return message(
        who,
        "the gradient is missing",
        at=", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else ""),
        do="Pass all gradients, or give leaves without one to freeze() in a partition",
    )
