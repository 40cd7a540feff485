"""What a plan says of memory is what devices hold."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxopt_large as jl

from .catalog import RULES, some_of

_GIB = 2**30
_FORMATS = {
    "float32": lambda rule: rule,
    "int8": lambda rule: jl.stored(rule, mu=jl.int8(), nu=jl.int8()),
    "int4, bfloat16": lambda rule: jl.stored(rule, mu=jl.int4(), nu=jl.bfloat16()),
    "float8": lambda rule: jl.stored(rule, mu=jl.float8()),
}
_SPECS = {
    "replicated": {"w": P(), "u": P(), "b": P()},
    "tensor": {"w": P(None, "model"), "u": P("model"), "b": P()},
    "fsdp": {"w": P("data"), "u": P(("data", "model")), "b": P()},
}


def _mesh():
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def _params(specs, mesh):
    shapes = {"w": (256, 512), "u": (96, 8, 200), "b": (40,), "odd": (333, 701)}
    specs = {**specs, "odd": P()}
    return {k: jax.device_put(jnp.ones(s), NamedSharding(mesh, specs[k])) for k, s in shapes.items()}


def held(tree):
    """Bytes of each device, the most; CPUs give 4 bits a byte, which chips do not."""
    sizes = {}
    for x in jax.tree.leaves(tree):
        for shard in x.addressable_shards if x.sharding.memory_kind != "pinned_host" else []:
            is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
            size = (jax.random.key_data(shard.data) if is_key else shard.data).nbytes
            size //= 2 if x.dtype == jnp.int4 else 1
            sizes[shard.device] = sizes.get(shard.device, 0) + size
    return max(sizes.values(), default=0)


@pytest.mark.parametrize("placement", ["alone", "zero"])
@pytest.mark.parametrize("specs", list(_SPECS))
@pytest.mark.parametrize("name", list(_FORMATS))
def test_formats_and_placements(name, specs, placement):
    _check(_FORMATS[name](optax.chain(jl.clip_by_global_norm(1.0), jl.adamw(1e-3))), specs, placement)


@pytest.mark.parametrize(
    "case",
    some_of(RULES, *(str(c) for c in RULES if str(c) not in ("adafactor", "ademamix", "sm3", "prodigy"))),
)
@pytest.mark.parametrize("specs", ["tensor", "fsdp"])
def test_rules(case, specs):
    _check(case.rule(), specs, "zero")


def _check(rule, specs, placement):
    mesh = _mesh()
    params = _params(_SPECS[specs], mesh)
    if placement == "zero":
        rule = jl.zero(rule, mesh, axis="data")
    found = jl.plan(rule, params, mesh)
    state = jl.init_state(rule, params)
    assert found.part("state") == held(state)
    assert found.part("parameters") == held(params)
    assert found.devices == 8


def test_gradients_are_divided_with_the_state():
    mesh = AbstractMesh((8,), ("data",))
    params = {"w": jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16)}
    whole, divided = (jl.plan(r, params, mesh) for r in (jl.adam(1e-3), jl.zero(jl.adam(1e-3), mesh, "data")))
    assert whole.part("gradients") == 2 * 2**20
    assert divided.part("gradients") == 2 * 2**20 // 8
    summed = jl.plan(jl.zero(jl.adam(1e-3), mesh, "data"), params, mesh, accumulate=4)
    assert summed.part("accumulators") == 4 * 2**20 // 8
    assert not divided.part("accumulators")


def test_one_device_and_no_mesh():
    found = jl.plan(optax.adam(1e-3), {"w": jnp.ones((64, 64))})
    assert (found.devices, found.chip, found.headroom, found.fits) == (1, None, None, True)
    assert found.device_bytes == 4 * 64 * 64 * 4 + 4
    assert "1 device: 64.00 KiB each, without activations." in str(found)


def test_what_is_in_the_host_is_not_on_the_device():
    params = {"w": jnp.ones((256, 256))}
    rule = jl.offload(jl.adam(1e-3))
    found = jl.plan(rule, params)
    assert found.part("state") <= 8
    assert sum(row.bytes for row in found if row.part == "state") >= 2 * 4 * 256 * 256


def test_a_chip_that_is_too_small():
    """AdamW in float32, GPT-3, 64 chips of 16 GB: parameters, gradients and moments are 16 bytes a parameter."""
    mesh = AbstractMesh((64,), ("data",))
    sharding = NamedSharding(mesh, P("data"))
    params = {"w": jax.ShapeDtypeStruct((64 * 2734375, 1000), jnp.float32, sharding=sharding)}  # 175 G
    found = jl.plan(jl.zero(jl.adamw(1e-4), mesh, "data"), params, chip="v5e")
    assert not found.fits
    counters = found.part("state") - 2 * found.part("parameters")
    assert -found.headroom == 16 * 2734375 * 1000 + counters - int(15.75 * _GIB)
    assert "64 devices, v5e of 15.75 GiB: does not fit, by 25.00 GiB each." in str(found)


def test_json():
    mesh = AbstractMesh((8,), ("data",))
    params = {
        "w": jax.ShapeDtypeStruct((1024, 1024), jnp.float32),
        "b": jax.ShapeDtypeStruct((8,), jnp.float32),
    }
    found = jl.plan(jl.zero(jl.adam(1e-3), mesh, "data"), params, mesh, chip="h100")
    read = json.loads(found.to_json())
    assert read["chip"]["name"] == "H100"
    assert read["device_bytes"] == found.device_bytes == sum(row["device_bytes"] for row in read["rows"])
    assert [row["path"] for row in read["not_divided"]] == ["b"]


@pytest.mark.parametrize(
    ("options", "error", "expected"),
    [
        ({"chip": "v5"}, ValueError, r"plan: chip is unknown, got 'v5'; .*v5e.* Did you mean 'v5"),
        ({"accumulate": 0}, ValueError, r"plan: accumulate is out of range, got 0"),
        ({"accumulate": True}, ValueError, r"plan: accumulate is out of range, got True"),
        ({"mesh": (8,)}, TypeError, r"mesh is not a mesh"),
    ],
)
def test_bad_input(options, error, expected):
    with pytest.raises(error, match=expected):
        jl.plan(jl.adam(1e-3), {"w": jnp.ones((4, 4))}, **options)
    with pytest.raises(TypeError, match="not a rule"):
        jl.plan("adam", {"w": jnp.ones((4, 4))})


def test_deferred_gradients_are_whole():
    mesh = AbstractMesh((8,), ("data",))
    params = {"w": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}
    rule = jl.zero(jl.adam(1e-3), mesh, "data")
    found = jl.plan(rule, params, mesh, accumulate=2, accumulation="deferred")
    assert found.part("gradients") == found.part("accumulators") == 4 * 2**20
    assert jl.plan(rule, params).devices == 8


def test_mapped_axes():
    params = {"w": jnp.ones((1024, 64))}
    rule = jl.zero(jl.stored(jl.adam(1e-3), nu=jl.int8()), axis_name="data")
    found = jl.plan(rule, params, axis_sizes={"data": 8})
    state = jax.pmap(rule.init, axis_name="data")(jl.replicate(params, jax.devices()))
    assert (found.devices, found.part("state")) == (8, held(state))
    assert found.part("gradients") == 4 * 1024 * 64


def test_numbers_and_numpy_arrays():
    found = jl.plan(jl.adam(1e-3), {"w": 1.0, "v": np.ones((4, 4))})
    assert found.part("parameters") == 4 * 17
    with pytest.raises(TypeError, match=r"plan: a parameter is not an array, got 'x' at w"):
        jl.plan(jl.adam(1e-3), {"w": "x"})
