"""Specs of parameters that a configuration gives."""

import jax
import pytest
from jax.sharding import PartitionSpec

from jaxopt_large.config import mesh_of
from jaxopt_large.train import RunError
from jaxopt_large.train.shardings import param_shardings

from .runs import small

_PARAMS = {
    "dense": {
        "kernel": jax.ShapeDtypeStruct((6, 4), "float32"),
        "bias": jax.ShapeDtypeStruct((4,), "float32"),
    }
}


def _shardings(specs):
    config = small("placement.mesh={data: 4, model: 2}", f"placement.params={specs}")
    return param_shardings(config, _PARAMS, mesh_of(config.placement))


def test_the_first_glob_that_matches_gives_the_spec():
    found = _shardings("{'*kernel': [model, data], '*': [data]}")
    assert {name: s.spec for name, s in found["dense"].items()} == {
        "kernel": PartitionSpec("model", "data"),
        "bias": PartitionSpec("data"),
    }


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        ("{'*': [null, data]}", "'*' divides more dimensions than there are, got [None, 'data'] for (4,) at dense/bias."),
        ("{'*kernel': [data]}", "'*kernel' does not divide evenly, got 6 by data=4 at dense/kernel."),
        ("{'*kernal': [model]}", "'*kernal' matches no parameter that no glob before it does; the nearest are 'dense/kernel'"),
        ("{'*': [], '*bias': [data]}", "'*bias' matches no parameter that no glob before it does"),
    ],
)  # fmt: skip
def test_specs_that_cannot_be(specs, expected):
    with pytest.raises(RunError) as caught:
        _shardings(specs)
    assert str(caught.value).startswith("placement.params: ")
    assert expected in str(caught.value)
