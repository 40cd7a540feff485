"""`explain`: a row for each array of any rule's state, and what wrappers decided."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxopt_large as jl
from jaxopt_large import _owners


def _params():
    return {"a": {"w": jnp.ones((64, 512))}, "b": jnp.ones(8)}


def _rows(rule, params=None):
    return jl.explain(rule, _params() if params is None else params).rows


@pytest.mark.parametrize("rule", [jl.adamw(1e-3), optax.chain(optax.clip(1.0), optax.adamw(1e-3))])
def test_every_array_of_a_plain_rule(rule):
    found = jl.explain(rule, _params())
    table = str(found)
    assert {(r.path, r.rule, r.field): (r.dtype, r.shape, r.bytes) for r in found.rows} == {
        ("-", "adam", "count"): ("int32", (), 4),
        ("a/w", "adam", "mu"): ("float32", (64, 512), 131072),
        ("a/w", "adam", "nu"): ("float32", (64, 512), 131072),
        ("b", "adam", "mu"): ("float32", (8,), 32),
        ("b", "adam", "nu"): ("float32", (8,), 32),
    }
    assert {row.path for row in found} == {"-", "a/w", "b"}
    assert (found.state_bytes, found.parameter_bytes) == (262212, 131104)
    assert "262,212" in table
    assert "group" not in table.splitlines()[0]


def test_groups_and_parameters_without_state():
    rule = jl.partition({"b": jl.freeze(), "*": jl.partition({"a*": optax.sgd(0.1, momentum=0.9)})})
    shapes = {(r.path, r.group, r.rule, r.field, r.bytes) for r in _rows(rule)}
    assert shapes == {("a/w", "* > a*", "trace", "trace", 131072), ("b", "b", "-", "-", 0)}
    labels = optax.multi_transform({"x": optax.adam(1.0), "y": optax.sgd(1.0)}, {"a": {"w": "x"}, "b": "y"})
    assert {r.group for r in _rows(labels) if r.path != "b"} == {"x"}


def test_a_group_named_like_a_parameter_does_not_own_the_counts():
    rows = _rows(jl.partition({"b": jl.adam(1e-3), "*": jl.freeze()}))
    assert {(r.path, r.field) for r in rows if r.group == "b"} == {("-", "count"), ("b", "mu"), ("b", "nu")}


def test_wrappers_in_a_part_and_around_each_other():
    mesh = jax.sharding.AbstractMesh((8,), ("data",))
    part = jl.partition({"b": jl.sgd(0.1), "*": jl.offload(jl.adam(1e-3), min_bytes=0)})
    assert [(d.wrapper, d.path) for d in jl.explain(part, _params())] == [("-", "b"), ("offload", "a/w")]
    whole = jl.zero(jl.accumulate(jl.stored(jl.adam(1e-3), nu=jl.int8()), 2), mesh, "data", min_bytes=0)
    found = jl.explain(jl.offload(whole, min_bytes=0), _params())
    rows = {(r.path, r.rule, r.field): r for r in found.rows}
    assert rows["a/w", "accumulate", "total"].where == "data, host"
    nu = rows["a/w", "adam", "nu"]
    assert (nu.dtype, nu.shape, nu.bytes, nu.device_bytes) == ("int8", (64, 512), 64 * 512 + 4 * 64 * 4, 0)
    assert {d.wrapper for d in found} == {"offload", "zero", "stored"}


def test_what_storage_leaves_alone():
    params = {"c": jnp.ones((64, 128), jnp.complex64), "w": jnp.ones((64, 128))}
    found = {
        (d.path, d.where): d.reason
        for d in jl.explain(jl.stored(optax.sgd(0.1, momentum=0.9), trace=jl.int8()), params)
    }
    assert (
        found["c", "trace: complex64"] == "complex64 is left as it is: formats are for arrays of real numbers"
    )
    assert found["w", "trace: int8"] == "given"


def test_bare_arrays_keys_and_factors():
    rows = _rows(jl.adam(1e-3), jnp.ones(3))
    assert [(r.path, r.field) for r in rows] == [("-", "count"), ("", "mu"), ("", "nu")]
    rows = {r.field: r for r in _rows(optax.adafactor(1e-3), {"w": jnp.ones((256, 128))})}
    assert (rows["v_row"].path, rows["v_row"].shape) == ("w", (128,))
    rows = {r.field: r for r in _rows(optax.add_noise(0.1, 0.5, key=jax.random.key(0)))}
    assert rows["rng_key"].path == "-"


def test_many_leaves_are_printed_shortened_and_found_once_each(monkeypatch):
    params = {f"layer{i:03}": {"w": jax.ShapeDtypeStruct((8, i % 10 + 1), jnp.float32)} for i in range(400)}
    children = []
    child = _owners._child
    monkeypatch.setattr(_owners, "_child", lambda *args: children.append(0) or child(*args))
    found = jl.explain(jl.adam(1e-3), params)
    assert len(found.rows) == 801
    assert len(children) <= 6 * len(found.rows)
    assert "... and 771 more" in str(found)
    assert len(str(found).splitlines()) < 50


def test_shares_that_split_blocks_are_told():
    """GPT-3's matrices under [null, model, data]: 96 of 12,288 elements on a device, and blocks of 128."""
    mesh = AbstractMesh((128, 8), ("data", "model"))
    split, whole = (NamedSharding(mesh, P(None, *axes)) for axes in (("model", "data"), ("data", "model")))
    params = {
        name: jax.ShapeDtypeStruct((96, 12288, 12288), jnp.float32, sharding=sharding)
        for name, sharding in (("split", split), ("whole", whole))
    }
    rule = jl.zero(jl.stored(jl.adamw(1e-4), mu=jl.int8(), nu=jl.int8()), mesh, "data", layers="*")
    reasons = {row.path: row.reason for row in jl.explain(rule, params) if row.wrapper == "zero"}
    assert reasons["split"].endswith(
        "in shares of 96: formats in blocks of 128 send parts of them; divide dimension 1 over 'data' in the place of 2"
    )
    assert "blocks" not in reasons["whole"]
