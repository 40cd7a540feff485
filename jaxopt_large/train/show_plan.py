"""`jaxopt-large plan`: what a run costs, in the terminal, as JSON, as a picture or a page."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from rich.console import Console

from .._errors import message
from .._tables import bytes_in
from ..config import Config, load, to_yaml
from ..plan import Plan, beside, picture
from . import budget, choices
from ._errors import RunError, RunWriteError
from .compiled import compared, compiled_step, topology_of
from .plan_table import show
from .planning import plan_of
from .user_model import plan_of_model, user_model

Say = Callable[[Any], None]  # prints


class Asked(NamedTuple):
    """What the command line was asked for, as `jaxopt-large plan --help` says."""

    chip: str | None
    mesh: str | None
    set: tuple[str, ...]
    budget: str | None
    compare: tuple[str, ...]
    compile: bool
    model: str | None
    png: str | None
    html: str | None
    json: bool


def show_plan(path: str, asked: Asked, say: Say) -> int:
    """Says what a plan says; returns the exit code: 1 where it does not fit."""
    devices = () if asked.mesh is None else (f"placement.mesh={_mesh(asked.mesh)}",)
    overrides = (*devices, *asked.set)
    config = load(path, overrides)
    for one, other in (
        ("model", "compile"),
        ("model", "budget"),
        ("budget", "compile"),
        ("budget", "compare"),
    ):
        if getattr(asked, one) and getattr(asked, other):
            wrong = f"--{one} and --{other} do not go together"
            raise RunError(message("plan", wrong, do="Ask for one after the other"))
    if asked.compile and asked.json:
        raise RunError(message("plan", "--compile has no JSON", do="Leave --json out"))
    if asked.compile and asked.chip is None:
        raise RunError(message("plan", "--compile needs to know for what", do="Give --chip, such as v5e"))
    if asked.model is not None:
        found = plan_of_model(config, user_model(asked.model), chip=asked.chip)
    elif asked.budget is not None:
        return _within(config, asked, say)
    else:
        found = plan_of(config, chip=asked.chip)
        found = found.beside(choices.alternatives(config, found, chip=asked.chip))
    _draw(found, config.name, asked)
    if asked.compare:
        return _compared(config, found, asked, overrides, say)
    if asked.json:
        say(found.to_json())
    else:
        show(found, Console())
    if asked.compile:
        return max(0 if found.fits else 1, _compiled(config, found, asked, say))
    return 0 if found.fits else 1


def bytes_of(text: str) -> int:
    """ "16GiB" in bytes.

    Raises:
      ValueError: it is something else.

    >>> bytes_of("16GiB"), bytes_of("1.5 MB")
    (17179869184, 1500000)
    """
    found = bytes_in(text)
    if found is None:
        wrong = f"budget is not understood, got {text!r}"
        raise ValueError(message("plan", wrong, do="Write it like 16GiB"))
    return found


def _within(config: Config, asked: Asked, say: Say) -> int:
    choice = budget.within(config, bytes_of(asked.budget or ""), chip=asked.chip)
    if asked.json:
        say(json.dumps(choice.to_json(), indent=1))
    else:
        say(choice)
        if choice.config is not None and choice.changes:
            say(f"\n{to_yaml(choice.config)}".rstrip())
    _draw(choice.plan, config.name, asked)
    return 1 if choice.config is None else 0


def _compared(config: Config, found: Plan, asked: Asked, overrides: tuple[str, ...], say: Say) -> int:
    plans = {config.name: found}
    for path in asked.compare:
        other = load(path, overrides)
        name = other.name if other.name not in plans else path
        plans[name] = plan_of(other, chip=asked.chip)
    if asked.json:
        say(json.dumps({name: json.loads(plan.to_json()) for name, plan in plans.items()}, indent=1))
    else:
        say(beside(plans))
    return 0 if all(plan.fits for plan in plans.values()) else 1


def _compiled(config: Config, found: Plan, asked: Asked, say: Say) -> int:
    """Says what the compiler says; returns 1 where it refuses."""
    topology = topology_of(asked.chip or "", found.devices)
    say(f"\nCompiled for {topology}, which takes minutes ...")
    try:
        told = compared(found, compiled_step(config, topology))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        say(f"The compiler refuses it: {str(error).splitlines()[0]}")
        return 1
    say(told)
    return 0


def _draw(found: Plan, name: str, asked: Asked) -> None:
    for path, write in ((asked.png, picture.save_png), (asked.html, picture.save_html)):
        if path is None:
            continue
        try:
            write(found, path, title=name)
        except OSError as error:
            raise RunWriteError(message("plan", f"{path!r} could not be written, got {error}")) from None


def _mesh(text: str) -> str:
    """ "data=128,model=8" as YAML.

    Raises:
      ValueError: it is something else.
    """
    pairs: list[Any] = [part.strip().partition("=") for part in text.split(",")]
    if not all(name and number.isdigit() for name, _, number in pairs):
        wrong = f"mesh is not understood, got {text!r}"
        raise ValueError(message("plan", wrong, do="Write it like data=128,model=8"))
    return "{" + ", ".join(f"{name}: {number}" for name, _, number in pairs) + "}"
