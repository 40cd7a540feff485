import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxopt_large as jl
from jaxopt_large._compat import make_mesh

from .catalog import bits_of, every_rule, in_turn, like, mixed_params, needs_host_memory

pytest.importorskip("orbax.checkpoint")
P = PartitionSpec


def _mesh(devices):
    return make_mesh((devices,), ("data",), devices=jax.devices()[:devices])


def _run(devices, case=None, steps=2):
    mesh = _mesh(devices)
    inner = case.rule() if case else jl.adamw(0.1)
    rule = jl.zero(optax.chain(jl.clip_by_global_norm(1.0), jl.skip_nonfinite(inner)), mesh, axis="data")
    params = jax.device_put(mixed_params(), NamedSharding(mesh, P()))
    state = rule.init(params)
    for seed in range(steps):
        _updates, state = jax.block_until_ready(jax.jit(rule.update)(like(params, seed), state, params))
    return rule, params, state


def _whole(state):
    """Leaves on the host, padding removed."""
    return [
        np.asarray(x) if cut is None else np.asarray(cut.unpad(jnp.asarray(np.asarray(x)), shape))
        for x, cut, shape in zip(
            jax.tree.leaves(state.inner), state.layout.state, state.layout.shapes, strict=True
        )
    ]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint written on 8 devices, and what it holds."""
    path = tmp_path_factory.mktemp("saved") / "step_1"
    _, params, state = _run(8)
    tree = {"params": params, "state": state, "key": jax.random.key(3), "n": 7, "host": np.arange(3)}
    jl.save(path, tree, metadata={"position": 12})
    return path, tree


def _copy(saved, tmp_path):
    return Path(shutil.copytree(saved[0], tmp_path / "copy")), saved[1]


def test_round_trip_bit_for_bit(saved):
    path, tree = saved
    back = jl.restore(path, tree)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
        if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
        assert getattr(a, "sharding", None) == getattr(b, "sharding", None)
    assert (back["n"], type(back["host"])) == (7, np.ndarray)
    assert jl.read_metadata(path) == {"position": 12}


@pytest.mark.parametrize("devices", [3, *(pytest.param(n, marks=pytest.mark.full) for n in (1, 4))])
def test_restores_on_another_number_of_devices(saved, devices):
    path, tree = saved
    rule, params, state = _run(devices, steps=0)
    back = jl.restore(path, {**tree, "params": params, "state": state})
    for a, b in zip(_whole(back["state"]), _whole(tree["state"]), strict=True):
        assert a.tobytes() == b.tobytes()
    jax.tree.map(lambda x, y: x.sharding == y.sharding or pytest.fail(str(x.sharding)), back["state"], state)
    jax.block_until_ready(rule.update(like(params, 0), back["state"], params))


@every_rule
def test_every_rules_state_goes_to_disk_and_back(case, tmp_path):
    rule, params = case.scheduled(lambda count: 0.1), mixed_params(jnp.bfloat16)
    _, state = rule.update(like(params, 0), rule.init(params), params)
    jl.save(tmp_path / "c", {"params": params, "state": state})
    back = jl.restore(tmp_path / "c", {"params": params, "state": rule.init(params)})
    for a, b in zip(jax.tree.leaves(back["state"]), jax.tree.leaves(state), strict=True):
        assert a.dtype == b.dtype
        assert bits_of(a) == bits_of(b)


@pytest.fixture(params=[True, False], ids=["host", "device"])
def where_summed(request, monkeypatch):
    """Small arrays are summed by NumPy, large ones by XLA: here all by one of them."""
    monkeypatch.setattr("jaxopt_large.checkpoint._checksums.SMALL", 2**16 if request.param else -1)


def test_checksums_are_those_of_older_checkpoints(where_summed):
    from jaxopt_large.checkpoint._checksums import checksums

    values = np.arange(30).reshape(2, 3, 5) * 7 % 5
    known = {
        "float32": "6c7149ea4e2b26a1",
        "bfloat16": "aa907d17f33f50c8",
        "float8_e4m3fn": "77a11a1c99748316",
        "int8": "26026918231d2d09",
        "uint32": "26026918231d2d09",
        "bool": "7e127fd3f2d03a52",
        "complex64": "082fafaab18d4f28",
    }
    arrays = {name: jnp.asarray(values.astype(jnp.dtype(name))) for name in known}
    assert checksums(arrays) == known
    alike = {str(n): jnp.asarray(values + n) for n in range(3)}
    assert checksums(alike) == {n: checksums({n: x})[n] for n, x in alike.items()}


def test_the_host_and_the_device_sum_alike(monkeypatch):
    from jaxopt_large.checkpoint._checksums import checksums

    values = np.random.default_rng(0).normal(size=(4, 6)) * 3
    dtypes = ("float32", "float16", "bfloat16", "float8_e5m2", "int8", "uint16", "bool", "complex64")
    arrays = {
        f"{name} {shape}": values[shape].astype(jnp.dtype(name))
        for name in dtypes
        for shape in (np.s_[:], np.s_[0, 0], np.s_[:0], np.s_[::2, 1::3])
    }
    found = checksums(arrays)
    assert len(set(found.values())) > len(found) // 2
    monkeypatch.setattr("jaxopt_large.checkpoint._checksums.SMALL", -1)
    assert checksums({name: jnp.asarray(x) for name, x in arrays.items()}) == found


def test_the_checksum_sees_every_bit_and_every_swap(where_summed):
    from jaxopt_large.checkpoint._checksums import checksums

    def checksum(x):
        return checksums({"x": jnp.asarray(x)})["x"]

    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    seen = {checksum(base)}
    for bit in range(32):
        flipped = base.copy()
        flipped.view(np.uint32)[2, 3] ^= np.uint32(1 << bit)
        seen.add(checksum(flipped))
    swapped = base.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    seen |= {checksum(swapped), checksum(base.T), checksum(base.reshape(6, 4)), checksum(base.ravel())}
    seen |= {checksum(np.zeros(n, np.float32)) for n in (1, 2, 3)}
    assert len(seen) == 1 + 32 + 4 + 3
    for dtype in (jnp.bfloat16, jnp.float16, jnp.int8, jnp.uint8, bool, jnp.int32):
        assert checksum(np.zeros(4, dtype)) != checksum(np.array([0, 0, 1, 0], dtype))


def test_the_checksum_does_not_depend_on_the_devices(mesh8, where_summed):
    from jaxopt_large.checkpoint._checksums import checksums

    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 24)), jnp.float32)
    spread = jax.device_put(x, NamedSharding(mesh8, P(None, "data")))
    assert checksums({"x": x}) == checksums({"x": spread})


def test_one_flipped_bit_in_any_file_is_found_and_the_file_named(saved, tmp_path):
    """orbax alone restores wrong values without a word."""
    path, tree = _copy(saved, tmp_path)
    files = [f for f in sorted(path.rglob("*")) if f.is_file()]
    assert len(files) > 5
    for file in files:
        content = file.read_bytes()
        for place in {len(content) // 2, len(content) - 1}:
            broken = bytearray(content)
            broken[place] ^= 4
            file.write_bytes(broken)
            with pytest.raises(jl.CheckpointError) as caught:
                jl.restore(path, tree)
            assert str(file) in str(caught.value)
        file.write_bytes(content)
    jl.restore(path, tree)


def test_a_value_that_changed_under_a_valid_file_is_found(saved, tmp_path):
    """As when memory flips a bit before the file is written: only the array's checksum can tell."""
    path, tree = _copy(saved, tmp_path)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["content"]["arrays"]["params/odd"]["checksum"] = "0" * 16
    from jaxopt_large.checkpoint._manifest import seal

    seal(path / "manifest.json", manifest["content"])
    with pytest.raises(jl.CheckpointError, match=r"its checksum does not fit, got .* at params/odd"):
        jl.restore(path, tree)
    jl.restore(path, tree, verify=False)


@pytest.mark.parametrize("damage", ["truncated", "missing", "longer"])
def test_files_of_another_size_are_named(saved, tmp_path, damage):
    path, tree = _copy(saved, tmp_path)
    file = max((f for f in (path / "arrays").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:-10] if damage == "truncated" else content + b"x")
    with pytest.raises(jl.CheckpointError, match="missing" if damage == "missing" else "truncated") as caught:
        jl.restore(path, tree)
    assert str(file) in str(caught.value)


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint, got"):
        jl.restore(tmp_path / "none", {})
    with pytest.raises(
        jl.CheckpointError, match=r"not a checkpoint of jaxopt_large: it has no manifest.json"
    ):
        jl.restore(tmp_path, {})
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(jl.CheckpointError, match=r"manifest.json' is damaged"):
        jl.restore(tmp_path, {})


def test_a_newer_format_is_refused(saved, tmp_path):
    path, tree = _copy(saved, tmp_path)
    from jaxopt_large.checkpoint._manifest import read_manifest, seal

    seal(path / "manifest.json", {**read_manifest(path), "version": 99})
    with pytest.raises(jl.CheckpointError, match=r"of another format, got .* version 99; .* up to version 3"):
        jl.restore(path, tree)


def test_another_model_is_named_leaf_by_leaf(saved):
    path, tree = saved
    other = {**tree, "params": {**tree["params"], "odd": jnp.zeros((3, 6)), "extra": jnp.zeros(2)}}
    with pytest.raises(ValueError, match="belongs to another model") as caught:
        jl.restore(path, other)
    text = str(caught.value)
    assert "has no array at params/extra" in text
    assert "has float32[3, 5], asked for float32[3, 6] at params/odd" in text


def test_nothing_is_overwritten_unasked(tmp_path):
    jl.save(tmp_path / "c", {"w": jnp.zeros(2)})
    with pytest.raises(FileExistsError, match="something is there already"):
        jl.save(tmp_path / "c", {"w": jnp.ones(2)})
    jl.save(tmp_path / "c", {"w": jnp.ones(2)}, overwrite=True)
    assert jl.restore(tmp_path / "c", {"w": jnp.zeros(2)})["w"].tolist() == [1.0, 1.0]
    assert [f.name for f in tmp_path.iterdir()] == ["c"]


def _killed_at_rename(monkeypatch, number):
    """Kills the process, as it were, before the rename of that number."""
    rename, left = Path.rename, [number - 1]

    def until(self, target):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", until)


@pytest.mark.parametrize("number", [1, 2])
def test_a_replacement_that_is_killed_leaves_what_was_there(tmp_path, monkeypatch, number):
    path, w = tmp_path / "c", {"w": jnp.zeros(2)}
    jl.save(path, {"w": jnp.ones(2)}, metadata={"step": 1})
    with monkeypatch.context() as patch:
        _killed_at_rename(patch, number)
        with pytest.raises(KeyboardInterrupt):
            jl.save(path, w, overwrite=True)
    assert path.exists() == (number == 1)
    assert jl.restore(path, w)["w"].tolist() == [1.0, 1.0]
    assert jl.restore_changed(path, w)[0]["w"].tolist() == [1.0, 1.0]
    assert jl.read_metadata(path) == {"step": 1}
    with pytest.raises(FileExistsError, match="something is there already"):
        jl.save(path, w)
    with monkeypatch.context() as patch:  # the next attempt dies too
        _killed_at_rename(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            jl.save(path, w, overwrite=True)
    assert jl.restore(path, w)["w"].tolist() == [1.0, 1.0]
    jl.save(path, {"w": jnp.full(2, 2.0)}, overwrite=True)
    assert jl.restore(path, w)["w"].tolist() == [2.0, 2.0]
    assert [f.name for f in tmp_path.iterdir()] == ["c"]


# --- metadata -----------------------------------------------------------------------------------------


def test_metadata_is_what_json_makes_of_it(tmp_path):
    jl.save(tmp_path / "c", {"w": jnp.ones(2)}, metadata={"epochs": {2: "a", 10: "b"}, "shape": (1, 2)})
    assert jl.read_metadata(tmp_path / "c") == {"epochs": {"2": "a", "10": "b"}, "shape": [1, 2]}
    jl.restore(tmp_path / "c", {"w": jnp.ones(2)})


@pytest.mark.parametrize("value", [np.float32(1), {1, 2}, {(1, 2): 3}, jnp.ones(2)], ids=repr)
def test_metadata_that_is_not_json_is_refused_first(value, tmp_path):
    with pytest.raises(TypeError, match=r"save: metadata is not JSON \(.*\), got .*; dictionaries, lists"):
        jl.save(tmp_path / "c", {"w": jnp.ones(2)}, metadata={"x": value})
    assert not list(tmp_path.iterdir())


# --- planned states -----------------------------------------------------------------------------------


def test_a_planned_state_is_read_where_it_belongs(tmp_path, mesh8):
    params = {"w": jnp.ones((24, 16)), "odd": jnp.ones((9, 7)), "b": jnp.ones(3)}
    rule = jl.zero(jl.adam(1e-2), mesh8, "data", min_bytes=0)
    saved = _trained(rule, params)
    jl.save(tmp_path / "c", saved)
    planned = jl.abstract_state(rule, params)
    changed, report = jl.restore_changed(tmp_path / "c", planned)
    assert (report.new, report.dropped) == ((), ())
    for got in (jl.restore(tmp_path / "c", planned), changed):
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(saved), strict=True):
            assert (a.sharding, np.asarray(a).tobytes()) == (b.sharding, np.asarray(b).tobytes())
    jl.save(tmp_path / "d", {"adam": saved})
    # arrays where they are new, shapes elsewhere
    with pytest.raises(
        ValueError, match="the checkpoint has no such array, and none was given at trace/trace/odd"
    ):
        jl.restore_changed(
            tmp_path / "d", {"adam": planned, "trace": jl.abstract_state(optax.trace(0.9), params)}
        )
    trace = optax.trace(0.9).init(params)
    got, report = jl.restore_changed(tmp_path / "d", {"adam": planned, "trace": trace})
    jax.tree.map(np.testing.assert_array_equal, got["trace"], trace)
    assert len(report.new) == 3


@pytest.mark.parametrize("read", [jl.restore, jl.restore_changed])
def test_a_plan_without_places_is_refused(read, tmp_path, mesh8):
    params = {"odd": jnp.ones((9, 7))}
    rule = jl.zero(jl.adam(1e-2), mesh8, "data", min_bytes=0)
    jl.save(tmp_path / "c", {"state": rule.init(params)})
    with pytest.raises(
        ValueError, match=r"3 leaves of a ZeroState are shapes without a sharding at state\. Pass abstr"
    ):
        read(tmp_path / "c", {"state": jax.eval_shape(rule.init, params)})
    plain = jax.eval_shape(jl.adam(1e-2).init, params)
    read(tmp_path / "c", {"state": plain})


# --- across meshes, modes and rules -------------------------------------------------------------------


def _trained(rule, params, steps=2):
    state = rule.init(params)
    for seed in range(steps):
        _, state = jax.jit(rule.update)(like(params, seed), state, params)
    return state


def _meshed(sizes):
    names = ("data", "model")[: len(sizes)]
    count = int(np.prod(sizes))
    return make_mesh(sizes, names, devices=jax.devices()[:count])


_SOURCES, _SIZES = ("jit 2x4", "pmap 8", "jit 8 offloaded"), ((1,), (3,), (4,), (2, 2), (3, 2), (8,))


@pytest.mark.compat
@in_turn("sizes", _SIZES, "source", _SOURCES)
def test_a_state_is_read_on_another_mesh(source, sizes, tmp_path):
    from jaxopt_large.checkpoint._logical import unpadded

    params = {"w": jnp.ones((24, 16)), "odd": jnp.ones((9, 7)), "long": jnp.ones((50, 7)), "b": jnp.ones(3)}
    plain = _trained(jl.adamw(1e-2), params)
    if source == "pmap 8":
        rule = jl.zero(jl.adamw(1e-2), axis_name="i")
        copies = jl.replicate(params)
        state, step = jax.pmap(rule.init, axis_name="i")(copies), jax.pmap(rule.update, axis_name="i")
        for seed in range(2):
            _, state = step(jl.replicate(like(params, seed)), state, copies)
        saved = jl.to_global(state)
    elif source == "jit 2x4":
        rule = jl.zero(jl.adamw(1e-2), _meshed((2, 4)), "data", min_bytes=0)
        saved = _trained(rule, jax.device_put(params, NamedSharding(_meshed((2, 4)), P())))
    else:
        needs_host_memory()
        rule = jl.offload(jl.zero(jl.adamw(1e-2), _meshed((8,)), "data", min_bytes=0), min_bytes=0)
        saved = _trained(rule, jax.device_put(params, NamedSharding(_meshed((8,)), P())))
    jl.save(tmp_path / "c", saved)
    mesh = _meshed(sizes)
    rule = jl.zero(jl.adamw(1e-2), mesh, mesh.axis_names if len(sizes) > 1 else "data", min_bytes=0)
    fresh = rule.init(jax.device_put(params, NamedSharding(mesh, P())))
    got = jl.restore(tmp_path / "c", fresh)
    jax.tree.map(lambda a, b: a.sharding == b.sharding or pytest.fail(str(a.sharding)), got, fresh)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)),
        unpadded(got),
        unpadded(saved),
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), unpadded(got), plain)


@pytest.mark.compat
@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.full), 3, 8])
def test_a_state_is_read_into_pmap(devices, tmp_path):
    from jaxopt_large.checkpoint._logical import unpadded

    params = {"w": jnp.ones((24, 16)), "odd": jnp.ones((9, 7)), "long": jnp.ones((50, 7)), "b": jnp.ones(3)}
    mesh = _meshed((2, 4))
    rule = jl.zero(jl.adamw(1e-2), mesh, ("data", "model"), min_bytes=0)
    saved = _trained(rule, jax.device_put(params, NamedSharding(mesh, P())))
    jl.save(tmp_path / "c", saved)
    mapped, places = jl.zero(jl.adamw(1e-2), axis_name="i"), jax.devices()[:devices]
    copies = jl.replicate(params, places)
    fresh = jax.pmap(mapped.init, axis_name="i", devices=places)(copies)
    state = jl.to_per_device(jl.restore(tmp_path / "c", jl.to_global(fresh)), fresh)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)),
        jl.to_global(state),
        unpadded(saved),
    )
    step = jax.pmap(mapped.update, axis_name="i", devices=places)
    jax.block_until_ready(step(jl.replicate(like(params, 2), places), state, copies))
