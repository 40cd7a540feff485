"""Collectives read from HLO: the CPU compiler's own, and what TPU and GPU compilers write."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import jaxopt_large as jl

P = PartitionSpec
_TPU = """HloModule m
%all-reduce-scatter.2 (input.7: f32[512,1024], input.8: f32[1024,512]) -> (f32[64,1024], f32[128,512]) {
  %input.7 = f32[512,1024]{1,0} parameter(0)
  %all-reduce.11 = (f32[512,1024]{0,1:T(8,128)}, f32[1024,512]{1,0:T(8,128)}) all-reduce(%input.7, %input.8), channel_id=1, to_apply=%add
}

%async.1 (p: f32[64,1024]) -> f32[512,1024] {
  %all-gather.1 = f32[512,1024]{1,0:T(8,128)} all-gather(%p), channel_id=2, dimensions={0}
}

%async.2 (p: f32[64,1024]) -> f32[512,1024] {
  %all-gather.2 = f32[512,1024]{1,0:T(8,128)} all-gather(%p), channel_id=2, dimensions={0}
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(12)
  ROOT %lt = pred[] compare(%i, %constant.1), direction=LT
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %fusion.1 = (f32[64,1024], f32[128,512]) fusion(%a, %b), kind=kCustom, calls=%all-reduce-scatter.2
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %while.1 = (s32[], /*index=1*/f32[8]) while(%t), condition=%condition, body=%body
  %start = f32[512,1024] fusion(%q), kind=kCustom, calls=%async.1
  %done = f32[512,1024] fusion(%q), kind=kCustom, calls=%async.2
  %ar-start = f32[4]{0} all-reduce-start(%x), channel_id=9, to_apply=%add
  %ar-done = f32[4]{0} all-reduce-done(%ar-start)
  %ag-start = (bf16[2,4], bf16[16,4]) all-gather-start(%y), channel_id=10, dimensions={0}
  %rs = f32[2,4] reduce-scatter(%z), channel_id=11, replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add
}
"""


def test_fused_and_asynchronous_collectives_are_counted_right():
    found = jl.plan.collectives(_TPU)
    assert {k: found.count(k) for k in ("reduce-scatter", "all-gather", "all-reduce")} == {
        "reduce-scatter": 2,
        "all-gather": 2,
        "all-reduce": 1,
    }
    (inside,) = found.inside_loops()
    assert (inside.kind, inside.rounds, inside.arrays, inside.bytes) == (
        "reduce-scatter",
        12,
        2,
        2 * 512 * 1024 * 4,
    )
    assert found.bytes("reduce-scatter") == 12 * 2 * 512 * 1024 * 4 + 8 * 2 * 4 * 4
    assert found.bytes("all-gather") == 512 * 1024 * 4 + 16 * 4 * 2
    assert "reduce-scatter" in str(found)


@pytest.mark.compat
@pytest.mark.parametrize("way", ["shard_map", "pmap"])
def test_one_reduce_scatter_and_one_all_gather_per_leaf_or_group(way, mesh8):
    """Two large leaves one by one, all the small ones together."""
    params = {
        "a": jnp.ones((256, 128)),
        "b": jnp.ones((3, 64, 512)),
        "small": [jnp.ones(5), jnp.ones((7, 3)), jnp.ones(())],
    }
    rule = jl.zero(jl.adamw(1e-3), axis_name="data")
    specs = jl.mapped_state_specs(rule, params, {"data": 8})
    if way == "shard_map":
        options = {
            "mesh": mesh8,
            "in_specs": (P(), specs, P()),
            "out_specs": (P(), specs),
            "check_vma": False,
        }
        state = jax.jit(jax.shard_map(rule.init, mesh=mesh8, in_specs=P(), out_specs=specs, check_vma=False))(
            params
        )
        compiled = jax.jit(jax.shard_map(rule.update, **options)).lower(params, state, params).compile()
    else:
        copies = jl.replicate(params)
        state = jax.pmap(rule.init, axis_name="data")(copies)
        compiled = jax.pmap(rule.update, axis_name="data").lower(copies, state, copies).compile()
    found = jl.plan.collectives(compiled)
    assert {c.kind for c in found} == {"reduce-scatter", "all-gather"}
    for kind in ("reduce-scatter", "all-gather"):
        assert found.arrays(kind) == 3
        large = sum(np.prod(s) * 4 for s in [(256, 128), (3, 64, 512)])
        assert large < found.bytes(kind) < large + 8 * 4 * (1 + 3 + 1) + 1


def test_deferred_gradients_under_jit_are_reduced_once(mesh8):
    params, x = {"w": jnp.ones((64, 32))}, jnp.ones((64, 64))
    put = jax.device_put(x, jax.sharding.NamedSharding(mesh8, P("data")))

    def loss(params, x):
        return jnp.mean((x @ params["w"]) ** 2)

    once = jax.jit(jl.microbatched_grad(loss, 4, mode="deferred", mesh=mesh8, axis="data"))
    found = jl.plan.collectives(once.lower(params, put).compile())
    assert not [c for c in found.inside_loops() if c.bytes >= params["w"].nbytes]
    each = jax.jit(jl.microbatched_grad(loss, 4))
    found = jl.plan.collectives(each.lower(params, put).compile())
    assert [c.rounds for c in found.inside_loops() if c.bytes >= params["w"].nbytes] == [4]


def _nested_loops_and_branches(mesh):
    """Rounds of psum: 5 x 3; of ppermute: 5; one psum in one branch, one all_gather in the other."""

    def inner(x, _):
        return jax.lax.psum(x, "data") * 0.5, None

    def outer(x, _):
        x, _ = jax.lax.scan(inner, x, None, length=3)
        return x + jax.lax.ppermute(x, "data", [(i, (i + 1) % 8) for i in range(8)]), None

    def f(x, which):
        x, _ = jax.lax.scan(outer, x, None, length=5)
        return jax.lax.cond(
            which > 0,
            lambda x: jax.lax.psum(x, "data"),
            lambda x: 2.0 * jax.lax.all_gather(x, "data", tiled=True)[:64],
            x,
        )

    mapped = jax.shard_map(f, mesh=mesh, in_specs=(P(), P()), out_specs=P(), check_vma=False)
    return jax.jit(mapped).lower(jnp.ones(64), jnp.ones(())).compile()


@pytest.mark.parametrize("sign", ["%", ""], ids=["percent", "no percent"])
def test_loops_in_loops_and_branches_as_the_compiler_writes_them(sign, mesh8):
    text = _nested_loops_and_branches(mesh8).as_text().replace("%", sign)
    found = jl.plan.collectives(text)
    assert sorted((c.kind, c.rounds, c.computation == "main", c.bytes) for c in found) == [
        ("all-gather", 1, True, 8 * 64 * 4),
        ("all-reduce", 1, True, 64 * 4),
        ("all-reduce", 15, False, 64 * 4),
        ("collective-permute", 5, False, 64 * 4),
    ]


def test_names_without_percent_signs_and_heads_without_types():
    text = _TPU.replace("%", "")
    assert set(jl.plan.collectives(text)) == set(jl.plan.collectives(_TPU))
    short = "\n".join(
        f"{line.split(' (')[0]} {{" if line.endswith("{") else line for line in text.splitlines()
    )
    assert set(jl.plan.collectives(short)) == set(jl.plan.collectives(_TPU))


_BY_TWO = """HloModule m
%condition (p: (f32[8], u32[])) -> pred[] {
  %bound = u32[] constant(4)
  %p = (f32[8], u32[]) parameter(0)
  %count = u32[] get-tuple-element(%p), index=1
  ROOT %lt = pred[] compare(%count, %bound), direction=LT
}

%body (p: (f32[8], u32[])) -> (f32[8], u32[]) {
  %two = u32[] constant(2)
  %p = (f32[8], u32[]) parameter(0)
  %x = f32[8] get-tuple-element(%p), index=0
  %count = u32[] get-tuple-element(%p), index=1
  %sent = f32[8] collective-permute(%x), channel_id=1, source_target_pairs={{0,1}}
  %again = f32[8] collective-permute(%sent), channel_id=2, source_target_pairs={{0,1}}
  %next = u32[] add(%count, %two)
  ROOT %made = (f32[8], u32[]) tuple(%again, %next)
}

ENTRY %main (p: (f32[8], u32[])) -> (f32[8], u32[]) {
  %p = (f32[8], u32[]) parameter(0)
  ROOT %while.1 = (f32[8], u32[]) while(%p), condition=%condition, body=%body
}
"""


@pytest.mark.parametrize(
    "text", [_BY_TWO, _BY_TWO.replace("%", ""), _BY_TWO.replace("add(%", "add(u32[]{:T(128)} %")]
)
def test_loops_that_count_by_two(text):
    """A TPU's products that run while their operand is sent: two rounds stand in the body."""
    found = jl.plan.collectives(text)
    assert [c.rounds for c in found] == [2, 2]
    assert found.bytes("collective-permute") == 4 * 4 * 8
