"""Computations of HLO text: how often each runs, and which of their collectives are clones of one."""

import pytest

import jaxopt_large as jl

_CALLED = """%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%reduced (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %ar = f32[8]{0} all-reduce(%p), channel_id=1, replica_groups=[1,8]<=[8], to_apply=%add
}

%body (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %t = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[8]{0} get-tuple-element(%t), index=1
  %ar.1 = f32[8]{0} all-reduce(%x), channel_id=1, replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %next = (s32[], f32[8]{0}) tuple(%i, %ar.1)
}

%outer (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %t = (s32[], f32[8]{0}) parameter(0)
  ROOT %while.0 = (s32[], f32[8]{0}) while(%t), condition=%three, body=%body
}

%less (i: s32[], n: s32[]) -> pred[] {
  %i = s32[] parameter(0)
  %n = s32[] parameter(1)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%three (t: (s32[], f32[8])) -> pred[] {
  %t = (s32[], f32[8]{0}) parameter(0)
  %bound = s32[] constant(3)
  %i = s32[] get-tuple-element(%t), index=0
  ROOT %again = pred[] fusion(%i, %bound), kind=kLoop, calls=%less
}
"""


def _program(*instructions, called=_CALLED):
    lines = "\n".join(f"  {i}" for i in instructions)
    return f"HloModule m\n\n{called}\nENTRY %main.7_spmd (p: f32[8]) -> f32[8] {{\n{lines}\n}}\n"


def test_a_wrapped_operation_counts_once_from_start_to_done():
    wrapped = """%wrapped (p: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  ROOT %all-to-all.1 = f32[8,8]{1,0} all-to-all(%p), channel_id=1, replica_groups={{0,1}}, dimensions={0}
}
"""
    program = _program(
        "%start = ((f32[8,8]{1,0}), f32[8,8]{1,0}, u32[]) async-start(%p), calls=%wrapped",
        "%update = ((f32[8,8]{1,0}), f32[8,8]{1,0}, u32[]) async-update(%start), calls=%wrapped",
        "%done = f32[8,8]{1,0} async-done(%update), calls=%wrapped",
        called=wrapped,
    )
    (c,) = jl.plan.collectives(program)
    assert (c.kind, c.shape, c.bytes, c.arrays) == ("all-to-all", (8, 8), 256, 1)
    twice = program.replace(
        "  %done", "  %s2 = ((f32[8,8]), f32[8,8]) async-start(%p), calls=%wrapped\n  %done"
    )
    assert jl.plan.collectives(twice).count("all-to-all") == 2


@pytest.mark.parametrize(
    "branches",
    ["true_computation=%reduced, false_computation=%add", "branch_computations={%add, %reduced}"],
    ids=["true and false", "numbered"],
)
def test_branches_are_counted(branches):
    found = jl.plan.collectives(_program(f"ROOT %c = f32[8]{{0}} conditional(%p, %q, %q), {branches}"))
    assert [(c.kind, c.computation, c.rounds) for c in found] == [("all-reduce", "main", 1)]


def test_every_call_of_a_computation_counts():
    found = jl.plan.collectives(
        _program(
            "%once = f32[8]{0} call(%p), to_apply=%reduced",
            "%again = f32[8]{0} call(%once), to_apply=%reduced",
            "ROOT %c = f32[8]{0} conditional(%p, %q, %q), branch_computations={%reduced, %reduced}",
        )
    )
    assert found.count("all-reduce") == 4
    assert found.bytes() == 4 * 32


def test_every_loop_around_a_body_counts_its_own_rounds():
    trips = 'backend_config={"known_trip_count":{"n":"5"}}'
    found = jl.plan.collectives(
        _program(
            "%while.1 = (s32[], /*index=1*/f32[8]{0}) while(%t), condition=%three, body=%body",
            f"%while.2 = (s32[], f32[8]{{0}}) while(%while.1), condition=%three, body=%body, {trips}",
        )
    )
    assert sorted((c.computation, c.rounds) for c in found) == [("body", 3), ("body", 5)]
    nested = jl.plan.collectives(
        _program(f"%w = (s32[], f32[8]) while(%t), condition=%no, body=%outer, {trips}")
    )
    assert [(c.computation, c.rounds) for c in nested] == [("body", 15)]


_GATHER = (
    "all-gather(%p), channel_id={channel}, replica_groups=[1,8]<=[8], dimensions={{0}},"
    ' frontend_attributes={{chain_id="{chain}"}}'
)
_CHAINS = "".join(
    f"""%fused.{name} (p: f32[64,8]) -> f32[512,8] {{
  %p = f32[64,8]{{1,0}} parameter(0)
  ROOT %all-gather.{name} = f32[512,8]{{1,0:T(8,128){space}}} {_GATHER.format(channel=1, chain=chain)}
}}

"""
    for name, chain, space in [("0", 0, ""), ("1", 0, "S(1)"), ("2", 0, ""), ("3", 1, ""), ("4", 1, "")]
)
_WINDOW = """%window (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %t = (s32[], f32[8]{0}) parameter(0)
  %f = (s32[], f32[8]{0}) fusion(%t), kind=kOutput, calls=%fused.1
}

"""


def _fusions(*names):
    return [f"%call.{n} = f32[512,8]{{1,0}} fusion(%p), kind=kCustom, calls=%fused.{n}" for n in names]


def test_chains_of_clones_count_once_each_though_they_share_a_channel():
    found = jl.plan.collectives(_program(*_fusions("0", "1", "3", "2", "4"), called=_CHAINS))
    assert found.count("all-gather") == 2
    assert found.bytes() == 2 * 512 * 8 * 4


def test_an_operation_in_flight_across_a_loop_counts_once_outside_of_it():
    loop = '%w = (s32[], f32[8]) while(%t), condition=%c, body=%window, backend_config={"known_trip_count":{"n":"4"}}'
    program = _program(*_fusions("0"), loop, *_fusions("2"), called=_CHAINS + _WINDOW)
    assert [(c.computation, c.rounds) for c in jl.plan.collectives(program)] == [("main", 1)]


def test_calls_around_a_chain_of_clones_are_separate_executions():
    chain = "\n".join(f"  {line}" for line in _fusions("0", "1", "2"))
    around = _CHAINS + f"%layer (p: f32[64,8]) -> f32[512,8] {{\n{chain}\n}}\n"
    calls = [f"%call.{i} = f32[512,8]{{1,0}} call(%p), to_apply=%layer" for i in range(2)]
    assert jl.plan.collectives(_program(*calls, called=around)).count("all-gather") == 2


def test_fused_reduce_scatters_are_whole_operations_though_they_share_a_channel():
    """The TPU compiler gives every group of gradients that it combines channel 1."""
    called = "\n".join(
        f"""%all-reduce-scatter.{i}.clone.1 (p: f32[64,8]) -> f32[8,8] {{
  %p = f32[64,8]{{1,0}} parameter(0)
  %all-reduce.{i} = f32[64,8]{{1,0:T(8,128)}} all-reduce(%p), channel_id=1, replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %slice.{i} = f32[8,8]{{1,0}} dynamic-slice(%all-reduce.{i}, %o, %z), dynamic_slice_sizes={{8,8}}
}}
"""
        for i in range(2)
    )
    fusions = [
        f"%f.{i} = f32[8,8]{{1,0}} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.{i}.clone.1"
        for i in range(2)
    ]
    found = jl.plan.collectives(_program(*fusions, called=called))
    assert found.count("reduce-scatter") == 2
    assert found.bytes() == 2 * 64 * 8 * 4
