"""Every kind of leaf goes to disk and comes back, bit for bit, or is refused."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxopt_large as jl

pytest.importorskip("orbax.checkpoint")
P = PartitionSpec


def _bits(x):
    return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x).tobytes()


@pytest.mark.parametrize("memory", ["device", "pinned_host"])
@pytest.mark.parametrize(
    "name", ["int4", "uint4", "int2", "uint2", "float4_e2m1fn", "float8_e4m3fn", "complex64"]
)
def test_every_dtype_bit_for_bit(name, memory, tmp_path, mesh8):
    dtype = jnp.dtype(name)
    values = np.random.default_rng(0).integers(0, 256, size=(16, 3 * max(1, dtype.itemsize)), dtype=np.uint8)
    if name == "complex64":
        values = values.view(np.float32).reshape(16, 3, 2)
        x = jnp.asarray(values[..., 0] + 1j * values[..., 1], dtype)
    elif "8" in name:
        x = jax.lax.bitcast_convert_type(jnp.asarray(values), dtype)
    else:
        bits = jnp.dtype("uint" + re.search(r"\d", name)[0])
        x = jax.lax.bitcast_convert_type(jnp.asarray(values).astype(bits), dtype)
    host, few = np.asarray(x), x[:3, 0]
    x = jax.device_put(x, NamedSharding(mesh8, P("data"), memory_kind=memory))
    jl.save(tmp_path / "c", {"x": x, "host": host, "few": few})
    back = jl.restore(tmp_path / "c", {"x": jnp.zeros_like(x, device=x.sharding), "host": host, "few": few})
    assert (back["x"].dtype, back["x"].sharding) == (dtype, x.sharding)
    assert type(back["host"]) is np.ndarray
    assert _bits(back["x"]) == _bits(back["host"]) == _bits(x)
    assert _bits(back["few"]) == _bits(few)
    entry = json.loads((tmp_path / "c" / "manifest.json").read_text())["content"]["arrays"]["x"]
    assert (entry["shape"], entry["dtype"]) == ([16, 3], name)
    with pytest.raises(ValueError, match=rf"has {name}\[16, 3\].*, asked for int8\[16, 3\] at x"):
        jl.restore(tmp_path / "c", {**back, "x": jnp.zeros((16, 3), jnp.int8)})


def test_a_damaged_complex_array_is_found():
    from jaxopt_large.checkpoint._checksums import checksums

    values = [1 + 2j, 1 - 2j, 2 + 1j, -1 + 2j]
    assert len({checksums({"x": jnp.asarray([v], jnp.complex64)})["x"] for v in values}) == len(values)


@pytest.mark.parametrize("elements", [3, 2**16])
def test_bytes_in_the_other_order(elements, tmp_path):
    tree = {name: np.arange(elements).astype(name) for name in (">i2", ">f4", ">u4", ">f8", ">c8", ">c16")}
    jl.save(tmp_path / "c", tree)
    back = jl.restore(tmp_path / "c", tree)
    for name, x in tree.items():
        assert (type(back[name]), back[name].dtype) == (np.ndarray, x.dtype)
        np.testing.assert_array_equal(back[name], x)


def test_numbers_of_64_bits_are_told_apart(tmp_path):
    tree = {"n": 7, "x": 2.5, "z": 1 + 2j, "host": np.arange(3.0), "wide": np.array([1 + 2j, 3j])}
    jl.save(tmp_path / "c", tree)
    back = jl.restore(tmp_path / "c", tree)
    assert {k: type(v) for k, v in back.items()} == {k: type(v) for k, v in tree.items()}
    for name, x in tree.items():
        np.testing.assert_array_equal(back[name], x)
    with pytest.raises(ValueError, match=r"has int64\[\].*, asked for float64\[\].* at n"):
        jl.restore(tmp_path / "c", {**tree, "n": 1.0})


@pytest.mark.parametrize(
    "value",
    ["hello", np.array(["a"]), object(), 2**70, np.zeros(2, "i4,f4")],
    ids=["text", "array of text", "object", "huge integer", "structured array"],
)
def test_what_cannot_be_saved_is_refused_first(value, tmp_path):
    with pytest.raises(
        TypeError, match=r"save: a checkpoint cannot hold this leaf, got .* of dtype .* at a/b; "
    ):
        jl.save(tmp_path / "c", {"a": {"b": value, "w": jnp.ones(2)}})
    assert not list(tmp_path.iterdir())


def test_a_random_key_keeps_its_implementation(tmp_path, mesh8):
    keys = jax.random.split(jax.random.key(1), 8)
    tree = {
        "rbg": jax.random.key(0, impl="rbg"),
        "keys": jax.device_put(keys, NamedSharding(mesh8, P("data"))),
    }
    jl.save(tmp_path / "c", tree)
    planned = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
    for like_ in (tree, planned, jax.eval_shape(lambda: tree)):
        back = jl.restore(tmp_path / "c", like_)
        for name, key in tree.items():
            assert (back[name].dtype, _bits(back[name])) == (key.dtype, _bits(key))
    assert jl.restore(tmp_path / "c", planned)["keys"].sharding == tree["keys"].sharding
    with pytest.raises(ValueError, match=r"has key<rbg>\[\].*, asked for key<urbg>\[\].* at rbg"):
        jl.restore(tmp_path / "c", {**tree, "rbg": jax.random.key(0, impl="unsafe_rbg")})
    with pytest.raises(ValueError, match=r"has key<fry>\[8\].*, asked for uint32\[8, 2\] at keys"):
        jl.restore(tmp_path / "c", {**tree, "keys": jax.random.key_data(keys)})
