"""Do two traces of a rule, on shares and on whole leaves, do the same work, shapes apart?"""

from typing import Any

import numpy as np

from .calls import ByWindow, meaning_of
from .primitives import known
from .sources import transform_of

_SHAPES = {"shape", "sizes", "new_sizes", "sharding", "out_sharding", "in_avals", "out_avals"}
_COMPARED = (int, float, complex, str, bool, tuple, type(None), np.dtype)


def difference_in_work(one: Any, other: Any) -> str | None:
    """Who does something else in one jaxpr than in the other, shapes apart: "" if unknown, None if nobody."""
    first, second = _equations(one), _equations(other)
    for a, b in zip(first, second, strict=False):
        if a.primitive is not b.primitive or not _same_literals(a, b):
            return transform_of(a)
        if isinstance(meaning_of(a), ByWindow) and isinstance(meaning_of(b), ByWindow):
            continue
        for key in a.params.keys() - _SHAPES:
            x, y = a.params[key], b.params.get(key)
            for inner, twin in zip(_jaxprs(x), _jaxprs(y), strict=False):
                found = difference_in_work(inner, twin)
                if found is not None:
                    return found or transform_of(a)
            if isinstance(x, _COMPARED) and not _jaxprs(x) and x != y:
                return transform_of(a)
    more = first[len(second) :] or second[len(first) :]
    return transform_of(more[0]) if more else None


def _equations(jaxpr: Any) -> list[Any]:
    """Those that compute: not those that only type a value as different on devices, or spread it."""
    return [e for e in getattr(jaxpr, "jaxpr", jaxpr).eqns if not known(e).typing]


def _same_literals(one: Any, other: Any) -> bool:
    values = [[x.val if hasattr(x, "val") else None for x in eqn.invars] for eqn in (one, other)]
    return len(values[0]) == len(values[1]) and all(
        np.array_equal(np.asarray(x), np.asarray(y), equal_nan=np.asarray(x).dtype.kind == "f")
        for x, y in zip(*values, strict=True)
    )


def _jaxprs(value: Any) -> list[Any]:
    """The jaxprs in a parameter of an equation."""
    values = value if isinstance(value, tuple) else (value,)
    return [v for v in values if hasattr(getattr(v, "jaxpr", v), "eqns")]
