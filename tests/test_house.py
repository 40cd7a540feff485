"""The house, as its plan has it: who may read equations, who knows wrappers, who reaches into whom."""

import ast
import itertools
from pathlib import Path

import pytest

import jaxopt_large

_ROOT = Path(jaxopt_large.__file__).parent
_FILES = sorted(_ROOT.rglob("*.py"))
_NODES = {  # the states of wrappers -> where they may be named
    "ZeroState": ("placement",),
    "OffloadState": ("placement",),
    "StoredState": ("storage",),
    "PartitionState": ("_routing.py",),
    "DeviceSum": ("_device_sums.py", "accumulation.py"),
}


def _nodes_of(kind, file):
    return [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, kind)]


def _place(file):
    return str(file.relative_to(_ROOT))


def test_only_tracing_reads_equations():
    readers = {
        _place(file)
        for file in _FILES
        if any(node.attr == "eqns" for node in _nodes_of(ast.Attribute, file))
        or any(node.value == "eqns" for node in _nodes_of(ast.Constant, file))
    }
    assert {name.split("/")[0] for name in readers} == {"tracing"}, readers


def test_there_is_one_table_of_primitives():
    """A collection of names of primitives elsewhere would be a second one."""
    from jaxopt_large.tracing.primitives import _TABLE

    for file in _FILES:
        if file.name == "primitives.py":
            continue
        for node in itertools.chain(*(_nodes_of(kind, file) for kind in (ast.Tuple, ast.Set, ast.List))):
            names = [x.value for x in node.elts if isinstance(x, ast.Constant)]
            known = [x for x in names if isinstance(x, str) and x in _TABLE]
            assert len(known) < 4 or file.name == "_lowerable.py", (_place(file), known)


def test_no_package_reaches_into_the_private_modules_of_another():
    for file in _FILES:
        inside = file.relative_to(_ROOT).parts[:-1]
        for node in _nodes_of(ast.ImportFrom, file):
            base = [*inside[: len(inside) - node.level + 1]] if node.level else []
            target = [*base, *(node.module or "").split(".")]
            packages = [part for part in target if part]
            private = [n for n, part in enumerate(packages) if part.startswith("_") and n > 0]
            for n in private:
                assert list(inside[:n]) == packages[:n], (_place(file), node.module)


@pytest.mark.parametrize("name", _NODES)
def test_a_wrapper_is_known_by_name_in_its_own_files_only(name):
    for file in _FILES:
        names = {n.id for n in _nodes_of(ast.Name, file)} | {n.attr for n in _nodes_of(ast.Attribute, file)}
        if name in names:
            assert _place(file).startswith(_NODES[name]), _place(file)


def test_what_differs_between_chips_is_in_their_folder():
    for file in _FILES:
        if "targets" in file.parts:
            continue
        for node in _nodes_of(ast.Compare, file):
            left = getattr(node.left, "id", getattr(node.left, "attr", ""))
            assert left != "target", (_place(file), node.lineno)


def test_every_order_that_is_refused_has_a_reason_and_a_remedy():
    from jaxopt_large._order import ORDERS

    assert len({(order.inner, order.outer) for order in ORDERS}) == len(ORDERS)
    assert all(order.wrong and order.do for order in ORDERS)
