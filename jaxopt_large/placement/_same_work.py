"""Do two traces of a rule, on shares and on whole leaves, do the same work, shapes apart?"""

from typing import Any

import numpy as np

from ..passes.codecs import codec_of

_WRAPPERS = ("chain", "named_chain", "with_extra_args_support", "partition", "lift")  # never to blame
_SHAPES = {"shape", "sizes", "new_sizes", "sharding", "out_sharding", "in_avals", "out_avals"}
_TYPING = ("pvary", "pcast", "shard_map_pvary", "axis_index", "reshard", "broadcast_in_dim")
_COMPARED = (int, float, complex, str, bool, tuple, type(None), np.dtype)


def difference_in_work(one: Any, other: Any) -> str | None:
    """Who does something else in one jaxpr than in the other, shapes apart: "" if unknown, None if nobody."""
    first, second = _equations(one), _equations(other)
    for a, b in zip(first, second, strict=False):
        if a.primitive is not b.primitive or not _same_literals(a, b):
            return transform_of(a)
        if codec_of(a):
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
    return [e for e in getattr(jaxpr, "jaxpr", jaxpr).eqns if e.primitive.name not in _TYPING]


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


def transform_of(eqn: Any) -> str:
    """The transform whose `update` this equation belongs to, like "optax.clip_by_global_norm"."""
    traceback = eqn.source_info.traceback
    for frame in traceback.frames if traceback is not None else ():
        function, *rest = frame.function_name.split(".")
        if function in _WRAPPERS or not any(part.startswith("update") for part in rest):
            continue
        parts = frame.file_name.replace("\\", "/").split("/")
        if "optax" in parts:
            return f"optax.contrib.{function}" if "contrib" in parts else f"optax.{function}"
        if "placement" not in parts:
            return function
    return ""
