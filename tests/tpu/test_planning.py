"""Plans beside the TPU compiler: peaks, and what is sent."""

import os

import pytest

pytest.importorskip("libtpu", reason="`make tpu` installs the TPU compiler")
os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxopt_large as jl
from jaxopt_large.train import budget as budgets
from jaxopt_large.train import plan_of
from jaxopt_large.train.compiled import compared, compiled_step

from ..train.runs import CONFIGS

pytestmark = pytest.mark.tpu_compile
_MODEL = "model={kind: transformer, layers: 4, width: 1024, heads: 8, vocabulary: 8192, dtype: bfloat16, remat: true}"
_ZERO = [_MODEL, "data={kind: text, context: 1024}", "train.batch=64", "placement.mesh={data: 16}"]
_BOTH = [
    *_ZERO,
    "placement.mesh={data: 4, model: 4}",
    "placement.fsdp=data",
    "placement.layers=layers/*",
    'placement.params={"*qkv": [null, null, null, model], "*up": [null, null, model], "*out|*down": [null, model]}',
]


def _step(config):
    with jax.numpy_dtype_promotion("standard"):  # JAX's own derivative of attention in bfloat16 asks for it
        return compiled_step(config, "v5e:4x4")


@pytest.mark.parametrize(
    ("overrides", "kinds"),
    [
        (_ZERO, ("all-gather",)),
        (_BOTH, ()),
    ],
    ids=["ZeRO-1", "FSDP x TP"],
)
def test_a_run_on_16_v5e(overrides, kinds):
    """What is sent within 12 %, whatever it is sent as, gathers to the byte; the peak not more than planned.

    Of so small a model the compiler runs what is planned one after another together: the plan is up to a third
    above it. Of large ones it is within 5 % (benchmarks/results/runs.json).
    """
    config = jl.load(CONFIGS / "stdlib_gpt.yaml", overrides)
    plan = plan_of(config, chip="v5e")
    found = compared(plan, _step(config))
    peak, sent = found.of("peak"), found.of("all collectives")
    assert peak.planned / 1.35 < peak.compiled < peak.planned * 1.05
    assert sent.compiled == pytest.approx(sent.planned, rel=0.12)
    for kind in kinds:
        assert found.of(kind).compiled == pytest.approx(found.of(kind).planned, abs=2**14)


@pytest.mark.parametrize("share", [0.5])
def test_a_budget_is_never_refused(share):
    """What the choice takes stays below the budget by the compiler's account too."""
    config = jl.load(CONFIGS / "stdlib_gpt.yaml", [x.replace("remat: true", "remat: false") for x in _ZERO])
    budget = int(plan_of(config, chip="v5e").device_bytes * share)
    choice = budgets.within(config, budget, chip="v5e")
    assert choice.config is not None
    assert _step(choice.config).memory_analysis().peak_memory_in_bytes <= budget


@pytest.mark.parametrize("stored", [False, True], ids=["float32", "int8, split"])
@pytest.mark.parametrize("specs", ["zero", "fsdp"])
def test_a_large_optimizer_step(specs, stored):
    """Stacks of 24 x 4,096 x 4,096: no changes of full size, parameters sent once, layer by layer."""
    devices = topologies.get_topology_desc("v5p:4x4x4", platform="tpu").devices
    mesh = Mesh(np.array(devices).reshape(16, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    spec = P(None, "data", "model") if specs == "fsdp" else P(None, None, "model")
    shape = (24, 4096, 4096)
    params = {
        name: jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec)) for name in "abcd"
    }
    rule = optax.chain(jl.clip_by_global_norm(1.0), jl.adamw(1e-3))
    rule = jl.stored(rule, params=jl.split(), mu=jl.int8(), nu=jl.int8()) if stored else rule
    rule = jl.zero(rule, mesh, "data", layers="*")
    state = jl.abstract_state(rule, params)
    places = jax.tree.map(lambda x: x.sharding, (params, state))

    def step(params, state, grads):
        return jl.apply(rule, grads, state, params)

    made = jax.jit(step, donate_argnums=(0, 1), out_shardings=places).lower(params, state, params).compile()
    sent = jl.plan.collectives(made)
    local = 2 * 4 * int(np.prod(shape)) // 4  # the parameters, in bfloat16, of one device
    assert sent.bytes("all-gather") == (0 if specs == "fsdp" else local)
    assert sent.bytes("all-reduce") < 2**12
    assert made.memory_analysis().temp_size_in_bytes < local / 6  # shares, not arrays
