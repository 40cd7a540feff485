"""State, and parameters, in fewer bits: one wrapper for any rule."""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, UInt32

from .._axes import share_of, surrounded_by
from .._encoded import Encoded, is_encoded
from .._errors import Problems, message
from .._numerics import safe_increment
from .._paths import listed, path_string
from .._types import AnyRule, Params, Rule, State, Updates, make_rule
from ._fields import Choice, choose, place
from ._format import Format
from ._random import leaf_key
from .float32 import Float32
from .parameters import ParameterFormat, read, write


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class StoredPlan:
    """What `stored` decided, part of the state's structure: a choice for each leaf of the inner state."""

    choices: tuple[Choice, ...]


class StoredState(NamedTuple):
    """State of `stored`."""

    step: Int[Array, ""]  # steps taken; with the seed all there is to random rounding
    seed: UInt32[Array, ""]
    residuals: Any  # of split parameters, int8, like the parameters; None where there is none
    inner: State  # the wrapped rule's, with `Encoded` arrays in it
    plan: StoredPlan


def stored(
    rule: AnyRule,
    params: ParameterFormat | None = None,
    *,
    seed: int = 0,
    **formats: Format | Mapping[str, Format],
) -> Rule:
    """Keeps fields of a rule's state in fewer bits between steps; the rule computes as before.

        rule = jl.stored(jl.adamw(3e-4), mu=jl.int8(), nu=jl.int8(), params=jl.split())

    Fields are named as in the rule's state, optax's included: `mu`, `nu`, `trace`, `v_row` ... Each step
    decodes them, runs the rule, and encodes what it returns. A format is the same on every mesh and in
    every mode: blocks follow the whole array, and random rounding is a hash of seed, parameter, step
    and place.

    Instead of a format, a mapping from globs over parameter paths to formats; the first match wins:

        nu={"*embed*": jl.float32(), "*": jl.int8()}

    Leaves of fewer than 4,096 elements stay float32, and, where no globs are given, second moments of
    embeddings, norms and routers. `print(jl.explain(rule, params))` tells what became of each leaf.

    Args:
      rule: any rule. `zero`, `accumulate` and `offload` belong around this wrapper.
      params: how parameters in bfloat16 are kept: `jl.rounded()`, `jl.split()`, or not specially. With it
        the rule sees float32 parameters and gradients, `update` needs `params`, and its updates are
        float32: `optax.apply_updates` takes a parameter to exactly the value that is meant (under
        strict dtype promotion, add them in float32 yourself).
      seed: of random rounding.
      **formats: state field -> format, or globs over parameters -> formats.

    Returns:
      The rule; its state is `StoredState`.

    Raises:
      TypeError: a format is none; rule is not a rule.
      ValueError: from `init`, when the state has no such field, a glob matches nothing, or no glob
        matches a leaf; all problems at once.

    Warns:
      UserWarning: from `init`, when parameters are bfloat16 or float16 and `params` is not given: steps
        below half the distance of two numbers are lost.

    >>> rule = jl.stored(optax.adamw(1e-3), mu=jl.int8(), nu=jl.int8())
    >>> state = rule.init({"w": jnp.ones((64, 128))})
    >>> state.inner[0].mu["w"].codes.dtype.name, state.inner[0].nu["w"].codes.dtype.name
    ('int8', 'uint8')
    """
    _check(rule, params, seed, formats)
    rule = optax.with_extra_args_support(rule)
    kept = params

    def init(params: Params) -> StoredState:
        _warn_of_low_precision(params, kept)
        residuals = None if kept is None else jax.tree.map(lambda p: _residual(kept, p), params)
        wide = params if kept is None else jax.tree.map(_widened, params)
        with surrounded_by("stored"):
            inner = rule.init(wide)
            choices = choose("stored", rule, wide, inner, formats)
        step, number = jnp.zeros((), jnp.int32), jnp.asarray(seed, jnp.uint32)
        leaves, treedef = jax.tree.flatten(inner)
        encoded = [_encode(c, x, number, step) for c, x in zip(choices, leaves, strict=True)]
        plan = StoredPlan(tuple(c._replace(share=None) for c in choices))
        return StoredState(step, number, residuals, treedef.unflatten(encoded), plan)

    def update(
        updates: Updates, state: StoredState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, StoredState]:
        if kept is not None and params is None:
            raise ValueError(
                message("stored", "params are needed, got None", do="Call update(grads, state, params)")
            )
        step = safe_increment(state.step)
        nodes, treedef = jax.tree.flatten(state.inner, is_leaf=is_encoded)
        inner = treedef.unflatten([x.format.decode(x) if is_encoded(x) else x for x in nodes])
        writer = None if kept is None else _Writer(kept, updates, state, params, step)
        with surrounded_by("stored"):
            if writer is None:
                changes, new = rule.update(updates, inner, params, **extra)
            else:
                changes, new = rule.update(writer.gradients, inner, writer.values, **extra)
        residuals = state.residuals
        if writer is not None:
            changes, residuals = writer.written(changes)
        keys = [path for path, _ in jax.tree_util.tree_flatten_with_path(updates)[0]]
        paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(state.inner, is_leaf=is_encoded)[0]]
        encoded = [
            _encode_again(old, x, path, keys, state.seed, step)
            for old, x, path in zip(nodes, treedef.flatten_up_to(new), paths, strict=True)
        ]
        return changes, StoredState(step, state.seed, residuals, treedef.unflatten(encoded), state.plan)

    return make_rule(init, update)


def is_stored(x: Any) -> bool:
    """Is it a state of `stored`?"""
    return isinstance(x, StoredState)


def _check(rule: Any, params: Any, seed: Any, formats: Any) -> None:
    problems = Problems("stored")
    if not (hasattr(rule, "init") and hasattr(rule, "update")):
        problems.add(f"rule is not a rule, got {rule!r}")
    if params is not None and not hasattr(params, "residual"):
        problems.add(
            f"params is not a format of parameters, got {params!r}", allowed="jl.rounded(), jl.split()"
        )
    if isinstance(seed, bool) or not isinstance(seed, int):
        problems.add(f"seed is not an integer, got {seed!r}")
    for field, given in formats.items():
        for format in given.values() if isinstance(given, Mapping) else [given]:
            if not isinstance(format, Format):
                problems.add(
                    f"{field} has no format, got {format!r}",
                    allowed="jl.float32(), jl.bfloat16(), jl.float8(), jl.int8() or jl.int4()",
                )
    problems.raise_if_any(TypeError)


def _is_low(p: Any) -> bool:
    return p.dtype in (jnp.bfloat16, jnp.float16)


def _warn_of_low_precision(params: Params, kept: ParameterFormat | None) -> None:
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    low = [path_string(k) for k, p in leaves if (_is_low(p) if kept is None else p.dtype == jnp.float16)]
    if low:
        warnings.warn(
            message(
                "stored",
                f"parameters in low precision lose small steps: {listed(low)}",
                do="Pass params=jl.rounded() or jl.split() (bfloat16)",
            ),
            stacklevel=3,
        )


# --- fields -------------------------------------------------------------------------------------------


def _encode(choice: Choice, x: Array, seed: Array, step: Array) -> Any:
    if choice.format is None:
        return x
    if isinstance(choice.format, Float32):
        return x.astype(jnp.float32) if _is_low(x) else x
    key = leaf_key(seed, f"{choice.field}/{choice.path}", step)
    encoded = choice.format.encode(x, key, share=choice.share)
    return dataclasses.replace(encoded, dtype="float32") if _is_low(x) else encoded


def _encode_again(old: Any, x: Any, path: tuple[Any, ...], keys: list[Any], seed: Array, step: Array) -> Any:
    """`x` in the format of what it replaces."""
    if not is_encoded(old):
        return x.astype(old.dtype) if hasattr(old, "dtype") and x.dtype != old.dtype else x
    field, owner = place(path, keys)
    share = None if owner is None else share_of(keys[owner])
    name = f"{field}/{'' if owner is None else path_string(keys[owner])}"
    encoded: Encoded = old.format.encode(x.astype(old.dtype), leaf_key(seed, name, step), share=share)
    return encoded


# --- parameters ---------------------------------------------------------------------------------------


def _widened(p: Array) -> Array:
    return p.astype(jnp.float32) if p.dtype == jnp.bfloat16 else p


def _residual(kept: ParameterFormat, p: Array) -> Any:
    return kept.residual(p) if p.dtype == jnp.bfloat16 else None


class _Writer:
    """Reads parameters as the rule is to see them, and writes what it makes of them."""

    def __init__(
        self, kept: ParameterFormat, updates: Updates, state: StoredState, params: Params, step: Array
    ):
        self._kept, self._seed, self._step = kept, state.seed, step
        paths, self._treedef = jax.tree_util.tree_flatten_with_path(params)
        self._paths, self._params = [k for k, _ in paths], [p for _, p in paths]
        self._residuals = self._treedef.flatten_up_to(state.residuals)
        self._values = [
            read(kept, p, r) if p.dtype == jnp.bfloat16 else p
            for p, r in zip(self._params, self._residuals, strict=True)
        ]
        self.values = self._treedef.unflatten(self._values)
        self.gradients = jax.tree.map(
            lambda g, p: g.astype(jnp.float32) if p.dtype == jnp.bfloat16 else g, updates, params
        )

    def written(self, changes: Updates) -> tuple[Updates, Any]:
        """The updates to apply, and the new residuals."""
        steps, residuals = [], []
        for key, p, value, u in zip(
            self._paths, self._params, self._values, self._treedef.flatten_up_to(changes), strict=True
        ):
            residual = None
            if p.dtype == jnp.bfloat16:
                draw = leaf_key(self._seed, f"params/{path_string(key)}", self._step)
                u, residual = write(self._kept, p, value + u, draw, share_of(key))
            steps.append(u)
            residuals.append(residual)
        return self._treedef.unflatten(steps), self._treedef.unflatten(residuals)
