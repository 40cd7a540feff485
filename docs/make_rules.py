"""Prints docs/RULES.md: what the rules say of themselves.

python docs/make_rules.py > docs/RULES.md
"""

import inspect
import re
import runpy
from pathlib import Path

import jaxopt_large as jl
from jaxopt_large.rules import RULES
from jaxopt_large.wrappers.every import WRAPPERS

_HEAD = """# Rules

Made by `make docs` from the rules' own signatures, descriptions and states. Bytes are of state per float32 parameter, with default
arguments and without `jl.stored`; fields that are like the parameters come first. All rules are written here; `jl.lbfgs` is optax's.

| rule | what it is | state | bytes | source | differs |
|---|---|---|---|---|---|"""

_WRAPPERS = """
## Around any rule

| wrapper | what it does | source |
|---|---|---|"""

_TORCH = """
## torch.optim

What stands for each of PyTorch's optimizers in its default settings, and why numbers differ where they do; all others agree to
12 digits. `tests/torch_peers` compares all 91 settings with which PyTorch tests its own.

| torch.optim | here | differs |
|---|---|---|"""


def page() -> str:
    """The page, as Markdown."""
    rows = [
        f"| `{row.name}` | {row.summary} | {', '.join(f'`{name}`' for name in row.fields) or '-'} | {row.bytes:g} "
        f"| {row.source} | {row.differs or '-'} |"
        for row in jl.rules()
    ]
    signatures = [f"- `{name}{_signature(make)}`" for name, make in RULES.items()]
    by_class = runpy.run_path(str(Path(__file__).with_name("torch_optim.py")))["by_class"]
    torch = [
        f"| `{name}` | {f'`{row.here}`' if row.here else '-'} | {row.differs or '-'} |"
        for name, row in by_class().items()
    ]
    wrappers = [_wrapper(name, make) for name, make in {**WRAPPERS, "sam": jl.sam}.items()]
    return "\n".join(
        [_HEAD, *rows, _WRAPPERS, *wrappers, _TORCH, *torch, "", "## Arguments", "", *signatures, ""]
    )


def _wrapper(name, make):
    text = " ".join((make.__doc__ or "").split())
    source = re.search(r"Source: (.*?)\.(?= >>>|$)", text)
    summary = re.split(r"[.:] ", text)[0].rstrip(".")
    return f"| `{name}{_signature(make)}` | {summary} | {source.group(1) if source else '-'} |"


def _signature(make) -> str:
    found = inspect.signature(make)
    bare = [
        p.replace(annotation=p.empty, default=_Named(p.default) if callable(p.default) else p.default)
        if p.default is not p.empty
        else p.replace(annotation=p.empty)
        for p in found.parameters.values()
    ]
    return str(found.replace(parameters=bare, return_annotation=inspect.Signature.empty))


class _Named:
    """A function among defaults, shown by its name."""

    def __init__(self, function):
        self.name = function.__name__

    def __repr__(self):
        return self.name


if __name__ == "__main__":
    print(page(), end="")
