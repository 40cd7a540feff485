"""State, and parameters, in fewer bits: one wrapper for any rule."""

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from .._encoded import is_encoded
from .._errors import Problems, is_rule, message
from .._gradients import Gradients, flat_gradients, in_order
from .._numerics import safe_increment
from .._order import Wrapper, check_order, inside
from .._paths import leaf_paths, listed
from .._states import check_state
from .._static import ANYTHING, is_placeholder
from .._types import AnyRule, Params, Rule, Updates, make_rule
from ._choices import Choice, choose
from ._codec import Codec
from ._format import Format
from ._stored_state import StoredPlan, StoredState, put_together
from ._update import updated
from .float32 import Float32
from .parameters import ParameterFormat, Split
from .random import leaf_key


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
    and place. (On one CPU device a compiled update takes large leaves part by part, so that of
    rules that work element by element no decoded copy exists; XLA rounds a sum of products differently
    there, in the last bit of a float32.) `jl.apply` runs
    a whole step in one pass, parameters included: on CPU it takes about half the time.

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
        check_order(Wrapper.STORED)
        if is_placeholder(params):
            step, number = jnp.zeros((), jnp.int32), jnp.asarray(seed, jnp.uint32)
            return StoredState(step, number, None if kept is None else params, rule.init(params), ANYTHING)
        _warn_of_low_precision(params, kept)
        residuals = None if kept is None else jax.tree.map(lambda p: _residual(kept, p), params)
        wide = params if kept is None else jax.tree.map(_widened, params)
        with _inside(kept):
            inner = rule.init(wide)
            choices = choose("stored", rule, wide, inner, formats)
        step, number = jnp.zeros((), jnp.int32), jnp.asarray(seed, jnp.uint32)
        leaves, treedef = jax.tree.flatten(inner)
        encoded = [_encode(c, x, number, step) for c, x in zip(choices, leaves, strict=True)]
        codings = tuple(x.coding if is_encoded(x) else None for x in encoded)
        plan = StoredPlan(tuple(c._replace(window=None) for c in choices), codings)
        return StoredState(step, number, residuals, treedef.unflatten(encoded), plan)

    def update(
        updates: Updates, state: StoredState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, StoredState]:
        if kept is not None and params is None:
            raise ValueError(
                message("stored", "params are needed, got None", do="Call update(grads, state, params)")
            )
        check_state("stored", StoredState, state)
        _check_kept(kept, state, params)
        gradients = _in_order(updates, state.plan, params)
        if kept is not None:
            _check_residuals(state, params)
        step = safe_increment(state.step)
        like = gradients.treedef.unflatten(range(len(gradients.leaves)))
        given = jax.tree.structure(state.inner)
        codec = Codec(kept, state.plan.choices, state.seed, step, like)
        held = (put_together(state.inner, state.plan), state.residuals)
        with _inside(kept):
            changes, (inner, residuals) = updated(codec, rule, gradients, held, params, extra)
        if given != jax.tree.structure(inner):
            inner = given.unflatten(jax.tree.leaves(inner))
        return changes, StoredState(step, state.seed, residuals, inner, state.plan)

    return make_rule(init, update)


@contextlib.contextmanager
def _inside(kept: ParameterFormat | None) -> Iterator[None]:
    with (
        inside(Wrapper.STORED),
        contextlib.nullcontext() if kept is None else inside(Wrapper.STORED_PARAMETERS),
    ):
        yield


def _check(rule: Any, params: Any, seed: Any, formats: Any) -> None:
    problems = Problems("stored")
    if not is_rule(rule):
        problems.add(f"rule is not a rule, got {rule!r}")
    if params is not None and not hasattr(params, "residual"):
        problems.add(
            f"params is not a format of parameters, got a {type(params).__name__}",
            allowed="jl.rounded(), jl.split()",
        )
    if isinstance(seed, bool) or not isinstance(seed, int):
        problems.add(f"seed is not an integer, got {seed!r}")
    elif not 0 <= seed < 2**32:
        problems.add(f"seed is out of range, got {seed!r}", allowed="0 to 2**32 - 1")
    for field, given in formats.items():
        for glob in given if isinstance(given, Mapping) else []:
            if not isinstance(glob, str):
                problems.add(f"{field} has a key that is not a glob, got {glob!r}", allowed="a string")
        for format in given.values() if isinstance(given, Mapping) else [given]:
            if not isinstance(format, Format):
                problems.add(
                    f"{field} has no format, got {format!r}",
                    allowed="jl.float32(), jl.bfloat16(), jl.float8(), jl.int8() or jl.int4()",
                )
    problems.raise_if_any(TypeError)


def _in_order(updates: Updates, plan: StoredPlan, params: Params | None) -> Gradients:
    """Gradients in the order of the parameters that the plan was made for."""
    gradients = in_order("stored", updates, params)
    if params is not None or len(flat_gradients(updates).leaves) == len(gradients.leaves):
        return gradients
    paths = leaf_paths(updates)  # is a None in the tree a parameter's, or was there none in init?
    known = [(c.owner, c.path) for c in plan.choices if c.owner is not None]
    if all(owner < len(paths) and paths[owner] == path for owner, path in known):
        return gradients
    return flat_gradients(updates)


def _check_kept(kept: ParameterFormat | None, state: StoredState, params: Params | None) -> None:
    """Raises where a state has residuals that this rule does not write, or lacks those that it reads."""
    reads, held = isinstance(kept, Split), bool(jax.tree.leaves(state.residuals))
    wanted = reads and any(p.dtype == jnp.bfloat16 for p in jax.tree.leaves(params))
    if (held and not reads) or (wanted and not held):
        has = "has the residuals of split()" if held else "has no residuals"
        raise ValueError(
            message(
                "stored",
                f"the state is of a rule that keeps parameters otherwise: it {has}, got params={kept}",
                do="Pass what this rule's init or update has returned, or jl.convert the state",
            )
        )


def _check_residuals(state: StoredState, params: Params) -> None:
    """Raises where residuals are not like the parameters."""
    try:
        jax.tree.structure(params).flatten_up_to(state.residuals)
    except ValueError as error:
        wrong = "params and state have different trees"
        raise ValueError(message("stored", wrong, do="Pass the state of these parameters")) from error


def _is_low(p: Any) -> bool:
    return p.dtype in (jnp.bfloat16, jnp.float16)


def _warn_of_low_precision(params: Params, kept: ParameterFormat | None) -> None:
    leaves = zip(leaf_paths(params), jax.tree.leaves(params), strict=True)
    low = [path for path, p in leaves if (_is_low(p) if kept is None else p.dtype == jnp.float16)]
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
    encoded = choice.format.encode(x, key, window=choice.window)
    if not _is_low(x):
        return encoded
    return encoded._replace(coding=dataclasses.replace(encoded.coding, decoded_dtype="float32"))


# --- parameters ---------------------------------------------------------------------------------------


def _widened(p: Array) -> Array:
    return p.astype(jnp.float32) if p.dtype == jnp.bfloat16 else p


def _residual(kept: ParameterFormat, p: Array) -> Any:
    return kept.residual(p) if p.dtype == jnp.bfloat16 else None
