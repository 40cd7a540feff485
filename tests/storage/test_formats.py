"""Codes: every one of them, at every scale, and what is not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_large as jl
from jaxopt_large._encoded import scale_order, scale_shape
from jaxopt_large._window import Window
from jaxopt_large.storage.bfloat16 import round_stochastically
from jaxopt_large.storage.random import leaf_key, random_bits, uniform

SIGNED = {"int8": jl.int8(signed=True), "float8": jl.float8(signed=True), "int4": jl.int4(signed=True)}
UNSIGNED = {"int8": jl.int8(signed=False), "float8": jl.float8(signed=False), "int4": jl.int4(signed=False)}
BLOCKED = [*(pytest.param(f, id=f"{n} signed") for n, f in SIGNED.items())]
BLOCKED += [*(pytest.param(f, id=f"{n} unsigned") for n, f in UNSIGNED.items())]
_EXPONENTS = np.arange(-84, 121, 6)


def _all_codes(format):
    """Every code as it may be stored."""
    if format.name == "float8":
        words = np.arange(256, dtype=np.uint8)
        codes = np.asarray(jax.lax.bitcast_convert_type(jnp.asarray(words), jnp.float8_e4m3fn))
        used = np.abs(codes.astype(np.float32)) <= 256
        return codes[used] if format.signed else codes[used & (words >= 1) & (words < 128)]
    most = {"int8": (127, 255), "int4": (7, 15)}[format.name][format.signed is False]
    low = -most if format.signed else 1
    dtype = {"int8": (jnp.int8, jnp.uint8), "int4": (jnp.int4, jnp.uint4)}[format.name][
        format.signed is False
    ]
    return np.arange(low, most + 1).astype(dtype)


@pytest.mark.compat
@pytest.mark.parametrize("format", BLOCKED)
def test_every_code_at_every_scale_comes_back(format):
    """A block with all of the codes in it, the largest among them, at scales from 5e-26 to 1e36."""
    codes = _all_codes(format)
    top = codes[np.argmax(codes.astype(np.float32))]
    rows = [np.concatenate([[top], part]) for part in np.array_split(codes, -(-len(codes) // 127))]
    for row in rows:
        wide = jnp.asarray(np.broadcast_to(row, (len(_EXPONENTS), len(row))))
        scales = jnp.asarray(2.0 ** _EXPONENTS.astype(np.float64), jnp.float32)[None]
        encoded = format.encode(jnp.ones(wide.shape))
        values = format.decode(encoded._replace(codes=wide, scales=scales))
        again = format.encode(values)
        np.testing.assert_array_equal(np.asarray(again.scales), np.asarray(scales))
        np.testing.assert_array_equal(np.asarray(again.codes, np.float32), np.asarray(wide, np.float32))
        if format.signed is False:
            assert np.all(np.asarray(values) > 0)


_ERRORS = {  # of the largest of the block, as the docstrings state them
    "int8 signed": lambda n: (1 + np.abs(n)) ** 2 / 500,
    "int8 unsigned": lambda n: (n**0.25 + 1 / 255) ** 4 - n + 2e-7,
    "float8 signed": lambda n: np.maximum(np.abs(n) * 2**-4, 2.0**-18),
}


@pytest.mark.parametrize("kind", _ERRORS)
def test_round_trips_stay_within_their_bounds(kind):
    name, sign = kind.split()
    format = (SIGNED if sign == "signed" else UNSIGNED)[name]
    r = np.random.default_rng(0)
    n = np.concatenate([r.uniform(-1, 1, 4096), np.exp(r.uniform(-20, 0, 4096)) * r.choice([-1, 1], 4096)])
    n = (n if sign == "signed" else np.abs(n)).astype(np.float32).reshape(-1, 128)
    n[:, 0] = 1.0
    for scale in (1e-20, 1e-3, 1.0, 1e15):
        got = np.asarray(format.decode(format.encode(jnp.asarray(n * np.float32(scale))))) / np.float32(scale)
        assert np.all(np.abs(got - n) <= _ERRORS[kind](n)), np.max(np.abs(got - n) / _ERRORS[kind](n))


@pytest.mark.parametrize("format", [*BLOCKED, pytest.param(jl.bfloat16(), id="bfloat16")])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
def test_what_is_not_finite_never_becomes_so(format, bad):
    x = jnp.linspace(0.1, 1.0, 300).at[150].set(bad)
    got = np.asarray(format.decode(format.encode(x)))
    assert not np.isfinite(got[150])
    assert np.all(np.isfinite(got[:128]))  # other blocks are as they were
    assert np.all(np.isfinite(got[256:]))


@pytest.mark.parametrize("format", BLOCKED)
def test_blocks_of_zeros_and_of_the_smallest_numbers(format):
    zeros = format.encode(jnp.zeros((2, 256)))
    assert np.all(np.asarray(format.decode(zeros)) == 0)
    tiny = np.asarray(format.decode(format.encode(jnp.full((2, 256), 1e-36))))
    assert np.all(np.isfinite(tiny))
    if format.signed is False:  # a second moment that is not 0 stays so, however small beside the largest
        x = jnp.full((2, 256), 1e-37).at[:, 0].set(1e-28)
        assert np.all(np.asarray(format.decode(format.encode(x))) > 0)


@pytest.mark.parametrize(
    "shape", [(1,), (127,), (128,), (129,), (3, 1), (3, 127), (2, 3, 384), (2, 2, 2, 200)], ids=str
)
@pytest.mark.parametrize("format", BLOCKED)
def test_shapes(format, shape):
    x = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1.0, size=shape), jnp.float32)
    encoded = format.encode(x)
    assert encoded.codes.shape == shape
    assert encoded.scales.shape == scale_shape(shape, scale_order(shape))
    np.testing.assert_allclose(np.asarray(format.decode(encoded)), np.asarray(x), rtol=0.35)
    tail = format.decode(format.encode(x.at[..., -1].set(4.0)))  # the last block has a maximum of its own
    np.testing.assert_allclose(np.asarray(tail)[..., -1], 4.0, rtol=3e-7)


def test_no_chip_pads_the_scales():
    """Tiles of 8 x 128: the scales of a weight take at most 1.1 % of its codes' bytes more than they hold."""
    shapes = [
        (4096, 4096),
        (768, 3072),
        (12, 768, 3072),
        (32, 4096, 11008),
        (50257, 768),
        (8, 64, 512, 1024),
        (2**20,),
    ]
    for shape in shapes:
        *_, rows, lanes = (1, 1, *scale_shape(shape, scale_order(shape)))
        lead = int(np.prod(scale_shape(shape, scale_order(shape)))) // (rows * lanes)
        padded = lead * (-(-rows // 8) * 8 if rows > 1 else 1) * -(-lanes // 128) * 128
        held = lead * rows * lanes
        assert 4 * (padded - held) <= 0.011 * np.prod(shape, dtype=np.int64), shape


@pytest.mark.parametrize("format", BLOCKED)
def test_the_largest_numbers(format):
    x = jnp.stack([jnp.full(128, 8.5e37), jnp.full(128, 3e38)])
    got = format.decode(format.encode(x))
    np.testing.assert_allclose(got[0], x[0], rtol=1e-2)
    assert np.all(np.isnan(got[1]))  # the scale has no inverse: never a wrong number


def test_bytes():
    assert jl.int8().bytes((1024, 1024)) == 2**20 * (1 + 4 / 128)
    assert jl.bfloat16().bytes((1024, 1024)) == 2 * 2**20
    assert jl.int4().bytes((1024, 1024)) == 2**20 * (0.5 + 4 / 128)
    encoded = jl.int8(signed=True).encode(jnp.ones((100, 300)))
    assert sum(x.nbytes for x in jax.tree.leaves(encoded)) == jl.int8().bytes((100, 300))


# --- rounding at random -------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1.0 + 1e-3, -3.14159, 1e-20, 7.3e30])
def test_bfloat16_is_right_in_the_mean(value):
    x = jnp.full(100_000, value, jnp.float32)
    rounded = round_stochastically(x, random_bits(leaf_key(jnp.uint32(0), "x", jnp.int32(1)), x.shape))
    wide = np.asarray(rounded, np.float64)
    assert len(np.unique(wide)) == 2
    assert abs(wide.mean() / value - 1) < 3e-5


def test_bfloat16_of_what_rounds_to_itself_and_of_the_largest():
    x = jnp.asarray([0.0, -0.0, 1.0, -2.5, 3.3895314e38, 3.4e38], jnp.float32)
    ones = jnp.full(x.shape, 0xFFFFFFFF, jnp.uint32)
    got = np.asarray(round_stochastically(x, ones), np.float32)
    np.testing.assert_array_equal(got[:5], np.asarray(x)[:5])
    assert np.signbit(got[1])


def test_unsigned_codes_are_right_in_the_mean():
    for format in UNSIGNED.values():
        x = jnp.tile(jnp.asarray([1.0, 0.37, 1e-3, 2.2e-5]), (32_768, 32))
        mean = np.asarray(format.decode(format.encode(x)), np.float64).mean(0)[:4]
        steps = {"int8": 4e-4, "float8": 4e-3, "int4": 2e-2}[format.name]
        np.testing.assert_allclose(mean, np.asarray(x)[0, :4], rtol=steps)


def test_bits_are_independent_between_leaves_steps_and_places():
    draws = {
        (name, step): np.asarray(
            uniform(random_bits(leaf_key(jnp.uint32(7), name, jnp.int32(step)), (64, 1024)))
        )
        for name in ("mu/a", "mu/b", "nu/a")
        for step in (1, 2)
    }
    flat = np.stack([x.ravel() for x in draws.values()])
    assert np.all(np.abs(flat.mean(1) - 0.5) < 5 / np.sqrt(12 * flat.shape[1]))
    correlation = np.corrcoef(flat) - np.eye(len(flat))
    assert np.max(np.abs(correlation)) < 5 / np.sqrt(flat.shape[1])
    x = draws["mu/a", 1]
    for a, b in ((x[:, 1:], x[:, :-1]), (x[1:], x[:-1]), (x[:, 128:], x[:, :-128])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)


@pytest.mark.parametrize("dim", [0, 1, 2, None])
def test_bits_follow_the_place_in_the_whole_array(dim):
    key, shape = leaf_key(jnp.uint32(3), "w", jnp.int32(9)), (4, 8, 48)
    whole = np.asarray(random_bits(key, shape))
    if dim is None:
        parts = [random_bits(key, (192, 1, 1), Window(shape, (jnp.int32(192 * i),))) for i in range(8)]
        joined = np.concatenate([np.asarray(p).ravel() for p in parts]).reshape(shape)
    else:
        length = shape[dim] // 4
        own = tuple(length if d == dim else n for d, n in enumerate(shape))
        parts = [
            random_bits(
                key,
                own,
                Window(shape, tuple(jnp.int32(length * i) if d == dim else 0 for d in range(len(shape)))),
            )
            for i in range(4)
        ]
        joined = np.concatenate([np.asarray(p) for p in parts], axis=dim)
    np.testing.assert_array_equal(joined, whole)
