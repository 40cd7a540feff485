"""Which way a pass runs: by the platform that is compiled for."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from . import _kernel, _loop
from ._pass import Pass


def run(pass_: Pass, aliased: Sequence[int | None], kernels: str) -> Callable[..., list[Any]]:
    """(arrays, scalars) -> results."""

    def loop(arrays: list[Any], scalars: list[Any], began: Any) -> tuple[list[Any], Any]:
        return _loop.loop(pass_, aliased, arrays, scalars, began)

    def whole(arrays: list[Any], scalars: list[Any], began: Any) -> tuple[list[Any], Any]:
        return pass_.whole(arrays, scalars), began

    if kernels in _kernel.TARGETS and pass_.has_blocks and _kernel.why_not(pass_, kernels) is None:
        return lambda arrays, scalars, began: (
            _kernel.kernel(pass_, aliased, arrays, scalars, kernels),
            began,
        )

    def leaf(arrays: list[Any], scalars: list[Any], began: Any) -> tuple[list[Any], Any]:
        if kernels == "auto" and _loop.helps(pass_):
            began = _loop.zero_of(scalars) if began is None else began
            return jax.lax.platform_dependent(arrays, scalars, began, cpu=loop, default=whole)
        return whole(arrays, scalars, began)

    return leaf
