"""Equations as kernel compilers take them: what one of them lacks, made of what all have."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._compat import bind
from ..tracing.interpret import interpreted, primitives_of
from ..tracing.primitives import known

_NARROW = (jnp.int8, jnp.uint8, jnp.int4, jnp.uint4, jnp.uint16, jnp.int16)
_HALVES = (jnp.bfloat16, jnp.float16)
_Rule = Callable[[Any, list[Any]], list[Any]]


def run_lowerable(closed: Any, args: Sequence[Any]) -> list[Any]:
    """The results of a traced function, by equations that kernel compilers have."""

    def run(eqn: Any, operands: list[Any]) -> list[Any]:
        return _RULES.get(eqn.primitive.name, _bind)(eqn, operands)

    return interpreted(closed, args, run)


def not_lowerable(closed: Any) -> list[str]:
    """The primitives of a traced function that kernel compilers do not have, not even by the rules here."""
    return sorted(name for name in primitives_of(closed) if not known(name).kernel)


def _bind(eqn: Any, operands: list[Any]) -> list[Any]:
    return bind(eqn, operands, elsewhere=True)


def _in_float32(rule: _Rule) -> _Rule:
    """Of 16-bit floats in 32 bits, then rounded: chips have no division or roots of them.

    So does XLA, except that within exp2 and logistic it may round more often.
    """

    def wider(eqn: Any, operands: list[Any]) -> list[Any]:
        dtype = eqn.outvars[0].aval.dtype
        if dtype not in _HALVES:
            return rule(eqn, operands)
        return [x.astype(dtype) for x in rule(eqn, [x.astype(jnp.float32) for x in operands])]

    return wider


def _convert(eqn: Any, operands: list[Any]) -> list[Any]:
    """Between floats and narrow integers by way of int32."""
    (x,), dtype = operands, eqn.params["new_dtype"]
    was = eqn.invars[0].aval.dtype
    floating = [jnp.issubdtype(d, jnp.floating) for d in (was, dtype)]
    if (floating[0] and dtype in _NARROW) or (floating[1] and was in _NARROW):
        x = jax.lax.convert_element_type(x, jnp.int32)
    if was == jnp.uint32 and floating[1]:  # halves, each exact
        high, low = ((h.astype(jnp.int32).astype(jnp.float32)) for h in (x >> 16, x & 0xFFFF))
        x = high * jnp.float32(2**16) + low
    return [jax.lax.convert_element_type(x, dtype)]


def _round(eqn: Any, operands: list[Any]) -> list[Any]:
    """To the nearest integer, of two the even one."""
    (x,) = operands
    if eqn.params["rounding_method"] != jax.lax.RoundingMethod.TO_NEAREST_EVEN:
        return _bind(eqn, operands)
    low = jnp.floor(x)
    rest = x - low
    odd = low - 2.0 * jnp.floor(low * 0.5)
    up = (rest > 0.5) | ((rest == 0.5) & (odd == 1.0))
    return [jnp.where(up, low + 1.0, low)]


def _is_finite(eqn: Any, operands: list[Any]) -> list[Any]:
    del eqn
    return [jnp.abs(operands[0]) < jnp.inf]


def _reduce_precision(eqn: Any, operands: list[Any]) -> list[Any]:
    """To bfloat16, in integers: of a cast there and back compilers make nothing."""
    (x,) = operands
    if (eqn.params["exponent_bits"], eqn.params["mantissa_bits"]) != (8, 7) or x.dtype != jnp.float32:
        return _bind(eqn, operands)
    word = jax.lax.bitcast_convert_type(x, jnp.uint32)
    nearest = word + jnp.uint32(0x7FFF) + ((word >> jnp.uint32(16)) & jnp.uint32(1))
    rounded = jax.lax.bitcast_convert_type(nearest & jnp.uint32(0xFFFF0000), jnp.float32)
    return [jnp.where(x == x, rounded, x)]


def _clamp(eqn: Any, operands: list[Any]) -> list[Any]:
    del eqn
    low, x, high = operands
    return [jnp.minimum(jnp.maximum(x, low), high)]


def _sign(eqn: Any, operands: list[Any]) -> list[Any]:
    del eqn
    (x,) = operands
    return [jnp.where(x > 0, jnp.full_like(x, 1), jnp.where(x < 0, jnp.full_like(x, -1), x))]


def _power(eqn: Any, operands: list[Any]) -> list[Any]:
    (x,), n = operands, eqn.params["y"]
    if not 1 <= n <= 4:
        return _bind(eqn, operands)
    square = x * x
    return [{1: x, 2: square, 3: square * x, 4: square * square}[n]]


_RULES: dict[str, _Rule] = {
    **dict.fromkeys(
        ["ceil", "div", "exp", "exp2", "floor", "log", "logistic", "rsqrt", "sqrt", "tanh"],
        _in_float32(_bind),
    ),
    "round": _in_float32(_round),
    "convert_element_type": _convert,
    "is_finite": _is_finite,
    "reduce_precision": _reduce_precision,
    "clamp": _clamp,
    "sign": _sign,
    "integer_pow": _power,
    "square": lambda eqn, operands: [operands[0] * operands[0]],
    "stop_gradient": lambda eqn, operands: operands,
}
