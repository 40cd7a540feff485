"""Instructions of HLO text: results and bytes of every collective, device groups, texts that are none."""

import jax
import jax.numpy as jnp
import pytest

import jaxopt_large as jl

_CONTEXT = "u32[]{:S(2)}"


def _program(*instructions, header="HloModule jit_f, is_scheduled=true, num_partitions=8"):
    lines = "\n".join(f"  {i}" for i in instructions)
    return f"{header}\n\nENTRY %main.7_spmd (p: f32[8]) -> f32[8] {{\n{lines}\n}}\n"


_INSTRUCTIONS = {
    "all-reduce-start, two arrays": (
        "(f32[4]{0}, /*index=1*/f32[8]{0}) all-reduce-start(%p, %q), to_apply=%add",
        ("all-reduce", (8,), 48, 2),
    ),
    "all-reduce-start, one array": (
        "f32[16]{0:T(128)} all-reduce-start(%p), to_apply=%add",
        ("all-reduce", (16,), 64, 1),
    ),
    "all-gather-start": (
        "(bf16[2,4]{1,0:T(8,128)(2,1)}, bf16[16,4]{1,0:T(8,128)(2,1)}) all-gather-start(%p), dimensions={0}",
        ("all-gather", (16, 4), 128, 1),
    ),
    "all-gather-start, two arrays": (
        "((f32[1]{0}, f32[2]{0}), (f32[8]{0}, f32[16]{0})) all-gather-start(%p, %q), dimensions={0}",
        ("all-gather", (16,), 96, 2),
    ),
    "collective-permute-start": (
        f"(f32[8]{{0}}, f32[8]{{0}}, {_CONTEXT}, {_CONTEXT}) collective-permute-start(%p),"
        " channel_id=1, source_target_pairs={{0,1},{1,0}}",
        ("collective-permute", (8,), 32, 1),
    ),
    "collective-permute-start, two arrays": (
        "((f32[8]{0}, s8[4]{0}), (f32[8]{0}, s8[4]{0}), u32[], u32[]) collective-permute-start(%p, %q)",
        ("collective-permute", (8,), 36, 2),
    ),
    "reduce-scatter-start": (
        "((f32[16,4]{1,0}), f32[2,4]{1,0}) reduce-scatter-start(%p), channel_id=1,"
        " replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add",
        ("reduce-scatter", (2, 4), 256, 1),
    ),
    "all-to-all-start": (
        "((f32[8,8]{1,0}), f32[8,8]{1,0}, u32[]) all-to-all-start(%p), replica_groups={}, dimensions={0}",
        ("all-to-all", (8, 8), 256, 1),
    ),
    "collective-broadcast": (
        "f32[8]{0} collective-broadcast(%p), channel_id=1, replica_groups={{0,1}}",
        ("collective-broadcast", (8,), 32, 1),
    ),
    "collective-broadcast-start": (
        "((f32[8]{0}), f32[8]{0}, u32[], u32[]) collective-broadcast-start(%p), replica_groups={{0,1}}",
        ("collective-broadcast", (8,), 32, 1),
    ),
    "ragged-all-to-all": (
        "f32[16,4]{1,0} ragged-all-to-all(%p, %o, %a, %b, %c, /*index=5*/%d), replica_groups={{0,1}}",
        ("ragged-all-to-all", (16, 4), 256, 1),
    ),
}


@pytest.mark.parametrize(("instruction", "truth"), _INSTRUCTIONS.values(), ids=_INSTRUCTIONS)
def test_results_of_every_operation(instruction, truth):
    done = instruction.split("(%")[0].split(" ")[-1].removesuffix("-start") + "-done"
    found = jl.plan.collectives(_program(f"%x = {instruction}", f"ROOT %y = f32[8]{{0}} {done}(%x)"))
    (c,) = found
    assert (c.kind, c.shape, c.bytes, c.arrays) == truth
    assert c.kind in str(found)


@pytest.mark.parametrize(
    ("header", "channel", "devices"),
    [
        ("HloModule m, num_partitions=8", "channel_id=1, ", 8),
        ("HloModule m, num_partitions=8", "", 8),
        ("HloModule m, replica_count=4", "", 4),
        ("HloModule m, replica_count=4, num_partitions=2", "channel_id=1, ", 8),
        ("HloModule m, replica_count=4, num_partitions=2", "", 4),
        ("HloModule m", "", 1),
    ],
)
def test_empty_replica_groups_mean_all_devices(header, channel, devices):
    for groups in ("replica_groups={}, ", ""):
        scatter = f"f32[2,4]{{1,0}} reduce-scatter(%p), {channel}{groups}dimensions={{0}}, to_apply=%add"
        found = jl.plan.collectives(_program(f"ROOT %rs = {scatter}", header=header))
        assert found.bytes("reduce-scatter") == 2 * 4 * 4 * devices


@pytest.mark.parametrize(
    "text",
    [
        "",
        "junk",
        "HloModule jit_f, num_partitions=8\n",
        "stablehlo",
        "ENTRY %main (p: f32[]) -> f32[] {\n}\n",
    ],
)
def test_other_texts_are_refused(text):
    if text == "stablehlo":
        text = jax.jit(lambda x: x + 1).lower(jnp.ones(3)).as_text()
    with pytest.raises(ValueError, match=r"^collectives: compiled is not .*, got .*; HLO .*compile\(\)"):
        jl.plan.collectives(text)


@pytest.mark.parametrize("what", [3, None, b"HloModule", jax.jit(lambda x: x)])
def test_what_is_no_program_is_refused(what):
    with pytest.raises(TypeError, match=r"^collectives: compiled is not a compiled program, got "):
        jl.plan.collectives(what)
