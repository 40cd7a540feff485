"""Optimizers of PyTorch and what stands for them here, on the same gradients in float64."""

import pytest

from docs.torch_optim import TORCH_OPTIM, by_class

from . import problem, theirs

_DIGITS = 1e-12  # of a leaf's largest element

_PAIRS = {table: theirs.pairs(table) for table in theirs.TABLES}
_SAME, _ALIKE, _APART = (
    [(table, *pair) for table, kinds in _PAIRS.items() for pair in kinds[kind]] for kind in range(3)
)

pytestmark = pytest.mark.usefixtures("x64")


def _named(pairs):
    return pytest.mark.parametrize(("table", "call", "here"), pairs, ids=[call for _, call, _ in pairs])


def _apart(table, call, here):
    return problem.apart(problem.trained_as(call, here), theirs.recorded(table)[call])


@_named(_SAME)
def test_numbers_agree(table, call, here):
    assert _apart(table, call, here) < _DIGITS


@_named(_ALIKE)
def test_numbers_agree_without_the_difference_that_is_given(table, call, here):
    assert _apart(table, call, here) < _DIGITS


@_named(_APART)
def test_a_difference_that_is_given_is_there(table, call, here):
    assert _apart(table, call, here) > _DIGITS


def test_every_row_agrees_or_says_why_not_and_every_reason_is_tried():
    for table, rows in theirs.TABLES.items():
        for call, row in rows.items():
            assert row.here or row.differs, call
            assert bool(row.alike) == bool(row.here and row.differs), call
        assert list(theirs.recorded(table)) == theirs.calls(table), "python -m tests.torch_peers.theirs"


@pytest.mark.parametrize("table", theirs.TABLES)
def test_what_is_recorded_is_what_they_do(table):
    pytest.importorskip("torch")
    recorded, seen = theirs.recorded(table), 0
    for call, numbers in recorded.items():
        try:
            now = theirs.trained(call)
        except ModuleNotFoundError:  # not all packages are here
            continue
        assert problem.apart(now, numbers) < _DIGITS, call
        seen += 1
    assert seen or pytest.skip("none of the packages is installed")


def test_every_class_is_there_in_its_default_settings():
    assert by_class().keys() == {call.split("(")[0] for call in TORCH_OPTIM}


def test_the_table_has_all_that_pytorch_tests():
    torch = pytest.importorskip("torch")
    pytest.importorskip("expecttest")
    if torch.__version__ != theirs.versions("torch_optim")["torch"]:
        pytest.skip("another version of PyTorch may test others")
    from torch.testing._internal.common_optimizers import optim_db

    def shown(x):
        return f"tensor({x.item():.3g})" if isinstance(x, torch.Tensor) else repr(x)

    assert {
        f"{info.optim_cls.__name__}({', '.join(f'{k}={shown(x)}' for k, x in tried.kwargs.items())})"
        for info in optim_db
        for tried in info.optim_inputs_func(device="cpu")
    } == TORCH_OPTIM.keys()
