"""Whose equations are they? The transform in whose `update` an equation was traced."""

from collections.abc import Sequence
from typing import Any

_WRAPPERS = ("chain", "named_chain", "with_extra_args_support", "partition", "lift")  # never to blame


def transform_of(equation: Any) -> str:
    """The transform whose `update` this equation belongs to, like "optax.clip_by_global_norm"; "" if unknown.

    For messages: it is read off the frames that Python had when the equation was traced.
    """
    traceback = equation.source_info.traceback
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


def innermost_transform(equations: Sequence[Any]) -> str:
    """The transform of the last of some equations, each inside the one before, of which one is known."""
    return next((name for e in reversed(equations) if (name := transform_of(e))), "")
