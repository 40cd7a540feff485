"""Wrong arguments are refused at construction, with name and value, by every rule and direction."""

import inspect
import typing

import pytest

import jaxopt_large as jl
from jaxopt_large._errors import DECAY, DECAYING, NON_NEGATIVE, POSITIVE, RATE
from jaxopt_large._hyperparameters import COUNT, FLOATING, PAIR, OneOf, domains
from jaxopt_large.rules import RULES
from jaxopt_large.wrappers.every import WRAPPERS

_WRONG = {  # domain -> values that are outside, values that are of another kind
    id(DECAY): ((1.0, -0.1, float("nan")), ("0.9", True)),
    id(DECAYING): ((1.0, -0.1), ("0.9",)),
    id(NON_NEGATIVE): ((-1e-8, float("inf")), ("1", [1.0])),
    id(POSITIVE): ((0.0, -1.0), ("1", None)),
    id(RATE): ((-1.0, float("nan")), ("1e-3", True)),
    id(COUNT): ((0, -3), (1.5, "2")),
    id(FLOATING): (("int8", "float33"), ()),
    id(PAIR): (((0.9, 1.0),), (0.9, (0.9,))),
}
_DIRECTIONS = [name for name in dir(jl) if name.startswith("scale_by_")]
_MAKERS = {
    **RULES,
    **{name: getattr(jl, name) for name in _DIRECTIONS},
    **WRAPPERS,
    "sam": jl.sam,
    "schedule_free_adamw": jl.schedule_free_adamw,
    "schedule_free_sgd": jl.schedule_free_sgd,
}


def _arguments(make):
    """What must be given, with values that are right."""
    needed = {}
    for name, p in inspect.signature(make).parameters.items():
        if p.default is p.empty:
            needed[name] = jl.sgd(0.1) if name == "rule" else 0.1
    return needed


def _cases():
    for who, make in _MAKERS.items():
        hints = typing.get_type_hints(inspect.unwrap(make), include_extras=True)
        for name, domain in domains(make).items():
            key = id(domain)
            if isinstance(domain, OneOf):
                yield who, name, "no such name", ValueError
            for value in _WRONG.get(key, ((), ()))[0]:
                yield who, name, value, ValueError
            for value in _WRONG.get(key, ((), ()))[1]:
                takes_none = inspect.signature(make).parameters[name].default is None
                if value is None and (takes_none or type(None) in typing.get_args(hints[name])):
                    continue
                yield who, name, value, TypeError


def test_wrong_arguments_are_named_with_their_value():
    """One test for all: each takes microseconds."""
    seen = 0
    for who, name, value, error in _cases():
        arguments = {**_arguments(_MAKERS[who]), name: value}
        with pytest.raises(error) as caught:
            _MAKERS[who](**arguments)
        said = str(caught.value)
        assert said.startswith(f"{who}: {name}"), (who, name, value, said)
        inner = value[-1] if isinstance(value, tuple) and len(value) == 2 else value
        assert repr(inner) in said or "float33" in said, (who, name, value, said)
        seen += 1
    assert seen > 800


@pytest.mark.parametrize("make", [jl.add_noise, lambda **given: jl.noisy_sgd(0.1, **given)])
def test_a_key_and_a_seed(make):
    name = "add_noise" if make is jl.add_noise else "noisy_sgd"
    with pytest.raises(TypeError, match=f"^{name}: key and seed are both given, got 1 and 2"):
        make(key=1, seed=2)
