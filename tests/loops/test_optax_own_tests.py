"""optax's own tests, which its wheel holds, run on ours of the same names."""

import contextlib
import functools
import importlib.util
import os
import re
import sys
import types
import warnings

import jax
import optax
import optax.contrib
import pytest

import jaxopt_large as jl
from jaxopt_large._hyperparameters import Rate

from .optax_exceptions import EXCEPTIONS, is_full

MODULES = (
    "_src.alias_test",
    "_src.combine_test",
    "_src.factorized_test",
    "_src.float64_test",
    "_src.lookahead_test",
    "_src.sharding_test",
    "_src.transform_test",
    "contrib._common_test",
    "contrib._complex_valued_test",
    "contrib._galore_test",
    "contrib._mechanic_test",
    "contrib._muon_test",
    "contrib._sam_test",
    "contrib._schedule_free_test",
    "schedules._inject_test",
    "schedules._join_test",
    "schedules._schedule_test",
    "transforms._accumulation_test",
    "transforms._adding_test",
    "transforms._clipping_test",
    "transforms._combining_test",
    "transforms._conditionality_test",
    "transforms._freezing_test",
    "transforms._layouts_test",
    "transforms._masking_test",
    "transforms._monitoring_test",
    "tree_utils._state_utils_test",
)


def deprecated(rule):
    @functools.wraps(rule)
    def warning(*args, **kwargs):
        warnings.warn("use `optimistic_adam_v2` instead", DeprecationWarning, stacklevel=2)
        return rule(*args, **kwargs)

    return warning


def scale_by_rms(decay=0.9, eps=1e-8, initial_scale=0.0, eps_in_sqrt=True, bias_correction=False):
    return jl.scale_by_rmsprop(decay, eps, initial_scale, eps_in_sqrt, False, bias_correction)


UNDER_OTHER_NAMES = {
    "mechanize": jl.mechanic,
    "optimistic_adam": deprecated(jl.optimistic_adam),  # they assert the warning, which is not ours
    "scale_by_rms": scale_by_rms,
    "scale_by_rss": jl.scale_by_adagrad,
}
SHARED = {
    name: (theirs, ours)
    for home in (optax, optax.contrib)
    for name, theirs in vars(home).items()
    if callable(theirs) and not isinstance(theirs, type)
    for ours in [UNDER_OTHER_NAMES.get(name) or (getattr(jl, name) if name in dir(jl) else theirs)]
    if ours is not theirs
}
SHARED["ScalarOrSchedule"] = optax.ScalarOrSchedule, Rate  # by which they find what takes a schedule


def is_optax(module):
    return isinstance(module, types.ModuleType) and module.__name__.split(".")[0] == "optax"


def ours_of(module):
    """What stands in for the functions of a module of optax."""
    return {name: ours for name, (theirs, ours) in SHARED.items() if vars(module).get(name) is theirs}


@contextlib.contextmanager
def _environment():
    """A module of theirs asks for 8 devices, which processes that other tests start would have too."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def load(name):
    """A test module of optax in which ours stand wherever it names one of optax's."""
    spec = importlib.util.find_spec(f"optax.{name}")
    if spec is None:
        raise ModuleNotFoundError(name)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:  # tables of cases hold some from the start
        for home in [m for m in sys.modules.values() if is_optax(m)]:
            for n, ours in ours_of(home).items():
                patch.setattr(home, n, ours)
        with _environment():
            spec.loader.exec_module(module)
    for n, value in list(vars(module).items()):
        if is_optax(value):
            setattr(module, n, types.SimpleNamespace(**{**vars(value), **ours_of(value)}))
    return module


def settings(test):
    """The test as it is written, and what absl runs it with."""
    free = {
        n: c.cell_contents for n, c in zip(test.__code__.co_freevars, test.__closure__ or (), strict=True)
    }
    given = free.get("testcase_params", {})
    if not isinstance(given, dict):
        given = dict(enumerate(given if isinstance(given, list | tuple) else [given]))
    return free.get("test_method", test), given


def names_in(code):
    """The names that a function's body has, and those of the functions in it."""
    inner = (names_in(c) for c in code.co_consts if isinstance(c, types.CodeType))
    return {*code.co_names}.union(*inner)


def concerns_us(test, given):
    own = names_in(test.__code__)
    helpers = [test.__globals__.get(n) for n in own]
    own = own.union(*(names_in(h.__code__) for h in helpers if isinstance(h, types.FunctionType)))
    values = [v for value in given.values() for v in (value if isinstance(value, tuple) else [value])]
    made_by_us = any(str(getattr(v, "__module__", "")).startswith("jaxopt_large") for v in values)
    return made_by_us or bool({*own, *map(word, given.values())} & {*SHARED})


def cases():
    for module in MODULES:
        with contextlib.suppress(ModuleNotFoundError):  # of what some of them need
            loaded = load(module)
            for klass in vars(loaded).values():
                if (
                    isinstance(klass, type)
                    and klass.__module__ == loaded.__name__
                    and hasattr(klass, "debug")
                ):
                    yield from cases_of(module.split(".")[-1], klass)


def cases_of(module, klass):
    for name in filter(re.compile("test").match, dir(klass)):
        test, given = settings(getattr(klass, name))
        if concerns_us(test, given):
            words = [module, name.rstrip("0123456789"), *map(word, given.values())]
            label = "-".join(filter(None, words))
            marks = [
                pytest.mark.skip(reason=why) for rule, why in EXCEPTIONS.items() if re.search(rule, label)
            ]
            marks += [pytest.mark.full] * is_full(label)
            yield pytest.param(klass, name, marks=marks, id=label)


def word(value):
    """A setting in the name of a case; none for trees and whole rules."""
    if isinstance(value, str | int | float | None) or hasattr(value, "__name__"):
        return str(getattr(value, "__name__", value))
    return ""


CASES = list(cases())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("klass", "name"), CASES)
def test_theirs(klass, name, monkeypatch):
    monkeypatch.setattr(jax, "__version__", "9")  # they compare strings: 0.10 comes before 0.7 there
    # they do what our own tests may not: promote, broadcast, and (MultiSteps) pass a key on in both branches
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), jax.debug_key_reuse(False):
        klass(name).debug()


@pytest.mark.parametrize("rule", EXCEPTIONS)
def test_exceptions_are_of_some_case(rule):
    assert any(re.search(rule, case.id) for case in CASES)
