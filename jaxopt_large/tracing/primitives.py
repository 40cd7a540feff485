"""What is known of JAX's primitives, a row for each: the only table of their names.

| word | what it says |
|---|---|
| element | each element of the result depends on scalars and on the elements in its place of the operands |
| moves | elements stay what they are, in another shape or memory |
| handed | hands its operands on: it only says where or how they are kept |
| typing | only types a value as different on devices, or spreads it |
| sign | the result is never negative if no operand is |
| square | the result is never negative |
| placed | the result lies where its operands lie |
| kernel | the compilers of Pallas kernels take it, with what `fused` makes of it |
| call | calls a function that can be written in its place |
| whole | over a mapped axis it makes the same of all shares |
| random | draws numbers by the shape of its result |
"""

from typing import NamedTuple

_ROWS = """
    abs                     element square kernel
    acos                    element
    acosh                   element
    add                     element sign kernel placed
    add_any                 element sign kernel placed
    all_gather              whole
    all_gather_invariant    whole
    and                     element kernel
    asin                    element
    asinh                   element
    atan                    element
    atan2                   element
    atanh                   element
    axis_index              typing
    bessel_i0e              element
    bessel_i1e              element
    bitcast_convert_type    element kernel
    broadcast_in_dim        moves typing sign kernel
    cbrt                    element sign
    ceil                    element kernel
    clamp                   element sign kernel
    closed_call             call
    clz                     element
    complex                 element
    concatenate             sign kernel
    conj                    element
    convert_element_type    element sign kernel placed
    copy                    element handed sign kernel placed
    cos                     element
    cosh                    element
    cummax                  sign
    cumsum                  sign
    custom_jvp_call         call
    custom_vjp_call         call
    device_put              moves
    digamma                 element
    div                     element sign kernel
    dynamic_slice           sign
    eq                      element kernel
    erf                     element
    erf_inv                 element
    erfc                    element
    exp                     element square kernel
    exp2                    element square kernel
    expand_dims             moves sign kernel
    expm1                   element
    floor                   element kernel
    gather                  sign
    ge                      element kernel
    gt                      element kernel
    imag                    element
    integer_pow             element kernel
    iota                    square kernel
    is_finite               element square kernel
    jit                     call kernel
    le                      element kernel
    lgamma                  element
    log                     element kernel
    log1p                   element
    logistic                element square kernel
    lt                      element kernel
    max                     element kernel
    min                     element sign kernel
    mul                     element sign kernel
    ne                      element kernel
    neg                     element kernel
    nextafter               element
    not                     element kernel
    optimization_barrier    element handed sign
    or                      element kernel
    pad                     sign
    pjit                    call kernel
    pmax                    whole
    pmin                    whole
    population_count        element
    pow                     element
    psum                    whole sign
    psum_invariant          whole
    pvary                   element handed typing sign
    random_bits             random
    real                    element
    reduce_max              sign kernel
    reduce_min              sign
    reduce_precision        element sign kernel
    reduce_sum              sign
    rem                     element kernel
    reshape                 moves sign kernel
    reshard                 element handed typing sign
    rev                     sign
    rng_bit_generator       random
    round                   element kernel
    rsqrt                   element square kernel
    select_n                element kernel
    sharding_constraint     element handed sign
    shift_left              element kernel
    shift_right_arithmetic  element kernel
    shift_right_logical     element kernel
    sign                    element kernel
    sin                     element
    sinh                    element
    slice                   sign kernel
    sqrt                    element sign kernel
    square                  element square kernel
    squeeze                 moves sign kernel
    stop_gradient           element handed sign kernel
    sub                     element kernel
    tan                     element
    tanh                    element kernel
    threefry2x32            random
    transpose               moves sign kernel
    xor                     element kernel
"""


class Primitive(NamedTuple):
    """What is known of a primitive; the table above says what each word means."""

    element: bool = False
    moves: bool = False
    handed: bool = False
    typing: bool = False
    sign: bool = False
    square: bool = False
    placed: bool = False
    kernel: bool = False
    call: bool = False
    whole: bool = False
    random: bool = False


def _read(rows: str) -> dict[str, Primitive]:
    lines = (line.split() for line in rows.strip().splitlines())
    return {name: Primitive(**dict.fromkeys(words, True)) for name, *words in lines}


_TABLE = _read(_ROWS)
_UNKNOWN = Primitive()


def known(equation_or_name: object) -> Primitive:
    """The row of an equation's primitive, or of a name; all False for what is not in the table."""
    primitive = getattr(equation_or_name, "primitive", None)
    return _TABLE.get(str(equation_or_name) if primitive is None else primitive.name, _UNKNOWN)
