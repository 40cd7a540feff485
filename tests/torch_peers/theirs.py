"""PyTorch's side of the comparison. Its numbers are kept in JSON, so that tests need no PyTorch.

pip install 'jaxopt_large[torch]' schedulefree prodigyopt dadaptation lion_pytorch pytorch_optimizer
python -m tests.torch_peers.theirs     # write both files again
"""

import contextlib
import importlib
import json
from pathlib import Path

import numpy as np

from docs.torch_optim import TORCH_OPTIM

from .others import OTHERS
from .problem import kept, of, problem

TABLES = {"torch_optim": TORCH_OPTIM, "others": OTHERS}
_IN_FLOAT64 = " in float64"
_DIGITS = 15


def recorded(table):
    """call -> what PyTorch's optimizer makes of the problem."""
    return json.loads(_file(table).read_text())["numbers"]


def trained(call):
    """What is kept of the training by an optimizer, given as its constructor's call without parameters."""
    import torch

    bare, in_float64 = call.removesuffix(_IN_FLOAT64), call.endswith(_IN_FLOAT64)
    home, given = bare.split("(", 1)
    module, _, name = home.rpartition(".")
    make = getattr(importlib.import_module(module or "torch.optim"), name)
    start, grads = (of(call, tree) for tree in problem())
    with _scalars_in_float64(), _half_precision_is_float64() if in_float64 else contextlib.nullcontext():
        # PyTorch's matrices are [outputs, inputs]
        params = {k: torch.nn.Parameter(torch.tensor(x.T.copy())) for k, x in start.items()}
        rule = eval(f"make(params, {given}", {"make": make, "params": _groups(params, name), "tensor": torch.tensor})
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


def _groups(params, name):
    return list(params.values())


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
def _half_precision_is_float64():
    """Keeps Muon from rounding to bfloat16."""
    import torch

    before = torch.Tensor.bfloat16
    torch.Tensor.bfloat16 = torch.Tensor.clone
    try:
        yield
    finally:
        torch.Tensor.bfloat16 = before


def calls(table):
    """All calls of a table that have a counterpart here."""
    rows = TABLES[table]
    here = [call for call, row in rows.items() if row.here]
    return list(dict.fromkeys([*here, *(row.alike[0] for row in rows.values() if row.alike)]))


def _file(table):
    return Path(__file__).with_name(f"{table}.json")


def _rounded(x):
    return [_rounded(each) for each in x] if isinstance(x, list) else float(f"{x:.{_DIGITS}g}")


def _record(table):
    import importlib.metadata

    homes = {"torch", *(call.split(".")[0] for call in calls(table) if "." in call.split("(")[0])}
    versions = {home: importlib.metadata.version(home) for home in sorted(homes)}
    numbers = {}
    for call in calls(table):
        parts = trained(call)
        assert all(np.all(np.isfinite(x)) for part in parts.values() for x in part.values()), call
        numbers[call] = {n: {k: _rounded(x) for k, x in part.items()} for n, part in parts.items()}
    rows = [f"{json.dumps(call)}: {json.dumps(x, separators=(',', ':'))}" for call, x in numbers.items()]
    _file(table).write_text(f'{{"versions": {json.dumps(versions)}, "numbers": {{\n' + ",\n".join(rows) + "\n}}\n")


if __name__ == "__main__":
    for each in TABLES:
        _record(each)
