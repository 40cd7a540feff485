"""What explanations and reports print, and the same as JSON."""

import json

import jax
import jax.numpy as jnp

import jaxopt_large as jl


def _rule():
    return jl.stored(jl.adamw(1e-3), mu=jl.int8(), nu=jl.int8())


_PARAMS = {"b": jnp.ones(8), "w": jnp.ones((64, 128))}


def test_a_decision_is_there_with_all_its_fields():
    found = json.loads(jl.explain(_rule(), _PARAMS).to_json())
    assert {"path", "rule", "field", "bytes", "where"} <= set(found["rows"][0])
    assert {"wrapper", "path", "reason"} <= set(found["decisions"][0])
    assert found["parameter_bytes"] == 4 * (8 + 64 * 128)


def test_numbers_that_are_none_are_null():
    (row,) = json.loads(jl.explain_apply(jl.adam(1e-3), {"scale": jnp.float32(1.0)}).to_json())
    assert row["path"] == "scale"
    assert row["ratio"] is None  # of a number bytes are not counted


def test_reports_and_collectives_too():
    rule = _rule()
    _, state = rule.update(_PARAMS, rule.init(_PARAMS), _PARAMS)
    rows = json.loads(jl.storage_report(state).to_json())
    assert {row["format"] for row in rows} == {"int8"}
    compiled = jax.jit(lambda x: x + 1).lower(jnp.ones(3)).compile()
    found = jl.plan.collectives(compiled)
    assert json.loads(found.to_json()) == []
    assert str(found).startswith("collective  count  in loops  MB a call")
