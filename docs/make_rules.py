"""Prints docs/RULES.md: what the rules say of themselves.

python docs/make_rules.py > docs/RULES.md
"""

import inspect

import jaxopt_large as jl
from jaxopt_large.rules import RULES

_HEAD = """# Rules

Made by `make docs` from the rules' own signatures, descriptions and states. Bytes are of state per float32 parameter, with default
arguments and without `jl.stored`; fields that are like the parameters come first.

| rule | what it is | state | bytes | source |
|---|---|---|---|---|"""


def page() -> str:
    """The page, as Markdown."""
    rows = [
        f"| `{row.name}` | {row.summary} | {', '.join(f'`{name}`' for name in row.fields) or '-'} | {row.bytes:g} | {row.source} |"
        for row in jl.rules()
    ]
    signatures = [f"- `{name}{_signature(make)}`" for name, make in RULES.items()]
    return "\n".join([_HEAD, *rows, "", "## Arguments", "", *signatures, ""])


def _signature(make) -> str:
    found = inspect.signature(make)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in found.parameters.values()]
    return str(found.replace(parameters=bare, return_annotation=inspect.Signature.empty))


if __name__ == "__main__":
    print(page(), end="")
