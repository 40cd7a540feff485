"""PyTorch's side of the comparison. Its numbers are kept in JSON, so that tests need no PyTorch.

pip install 'jaxopt_large[torch]' schedulefree prodigyopt dadaptation lion_pytorch pytorch_optimizer
python -m tests.torch_peers.theirs     # write both files again
"""

import contextlib
import functools
import importlib
import json
from pathlib import Path
from unittest import mock

import numpy as np

from docs.torch_optim import TORCH_OPTIM

from .others import OTHERS
from .problem import kept, of, problem

TABLES = {"torch_optim": TORCH_OPTIM, "others": OTHERS}
_DIGITS = 15


def recorded(table):
    """call -> what PyTorch's optimizer makes of the problem."""
    return _read(table)["numbers"]


def versions(table):
    """package -> the version that made the numbers."""
    return _read(table)["versions"]


def trained(call):
    """What is kept of the training by an optimizer, given as its constructor's call without parameters."""
    import torch

    changed = next((words for words in _CHANGES if call.endswith(words)), "")
    home, given = call.removesuffix(changed).split("(", 1)
    module, _, name = home.rpartition(".")
    make = getattr(importlib.import_module(module or "torch.optim"), name)
    start, grads = (of(call, tree) for tree in problem())
    with _scalars_in_float64(), _CHANGES.get(changed, contextlib.nullcontext)():
        # PyTorch's matrices are [outputs, inputs]
        params = {k: torch.nn.Parameter(torch.tensor(x.T.copy())) for k, x in start.items()}
        rule = eval(
            f"make(params, {given}", {"make": make, "params": list(params.values()), "tensor": torch.tensor}
        )
        if hasattr(rule, "train"):
            rule.train()
        seen = {k: [] for k in params}
        for n in range(len(grads["w"])):
            for k, p in params.items():
                p.grad = torch.tensor(grads[k][n].T.copy())
            rule.step()
            for k, p in params.items():
                seen[k].append(p.detach().numpy().T.copy())
    return kept(seen, _averages(rule, params))


def _averages(rule, params):
    """The parameters to evaluate with, of optimizers that have others than those they train."""
    if hasattr(rule, "eval"):
        rule.eval()
        return {k: p.detach().numpy().T for k, p in params.items()}
    if "ax" in rule.state[params["w"]]:
        return {k: rule.state[p]["ax"].numpy().T for k, p in params.items()}
    return None


@contextlib.contextmanager
def _scalars_in_float64():
    """Rates and products that PyTorch keeps in the default dtype."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _all_in_float64():
    """Keeps optimizers from rounding to less."""
    import torch

    same = torch.Tensor.clone
    with mock.patch.multiple(torch.Tensor, bfloat16=same, float=same):
        yield


@contextlib.contextmanager
def _without_1e_15():
    """Leaves out what pytorch_optimizer adds under roots, beside eps."""
    from pytorch_optimizer.base.optimizer import BaseOptimizer

    with (
        mock.patch.object(BaseOptimizer.apply_ams_bound, "__defaults__", (0.0,)),
        mock.patch.object(BaseOptimizer.apply_ams_bound_foreach, "__defaults__", (0.0,)),
    ):
        yield


_CHANGES = {" in float64": _all_in_float64, " without 1e-15": _without_1e_15}  # of what no argument changes


def pairs(table):
    """Calls and expressions: those with the same numbers, those without the difference given, and with it.

    Of the last there is one for each reason.
    """
    rows = TABLES[table]
    same = [(call, row.here) for call, row in rows.items() if row.here and not row.differs]
    alike = [row.alike for row in rows.values() if row.alike]
    apart = {
        row.differs: (call, row.here) for call, row in reversed(rows.items()) if row.here and row.differs
    }
    return same, alike, list(apart.values())


def calls(table):
    """All calls that are compared, once each."""
    return list(dict.fromkeys(call for kind in pairs(table) for call, _ in kind))


@functools.cache
def _read(table):
    return json.loads(_file(table).read_text())


def _file(table):
    return Path(__file__).with_name(f"{table}.json")


def _rounded(x):
    return [_rounded(each) for each in x] if isinstance(x, list) else float(f"{x:.{_DIGITS}g}")


def _record(table):
    import importlib.metadata

    homes = {"torch", *(call.split(".")[0] for call in calls(table) if "." in call.split("(")[0])}
    used = {home: importlib.metadata.version(home) for home in sorted(homes)}
    numbers = {}
    for call in calls(table):
        parts = trained(call)
        assert all(np.all(np.isfinite(x)) for part in parts.values() for x in part.values()), call
        numbers[call] = {n: {k: _rounded(x) for k, x in part.items()} for n, part in parts.items()}
    rows = [f"{json.dumps(call)}: {json.dumps(x, separators=(',', ':'))}" for call, x in numbers.items()]
    _file(table).write_text(
        f'{{"versions": {json.dumps(used)}, "numbers": {{\n' + ",\n".join(rows) + "\n}}\n"
    )


if __name__ == "__main__":
    for each in TABLES:
        _record(each)
