"""The command line. JAX and the rest are imported when a command runs, so that help is instant."""

import functools
import importlib.util
import os
import sys
from typing import Any

from . import __version__

_NEEDED = ("tyro", "rich", "grain", "orbax", "pydantic", "yaml", "sklearn")  # of the extra `train`


def train(
    config: str,
    /,
    *,
    set: tuple[str, ...] = (),
    resume: bool = False,
    overwrite: bool = False,
    fall_back: bool = False,
    changed: bool = False,
    runs: str = "runs",
) -> int:
    """Train a model as a configuration says.

    Args:
      config: a YAML file, such as configs/stdlib_gpt.yaml.
      set: settings that win over the file, like train.steps=100; may be given several times.
      resume: go on from the newest checkpoint.
      overwrite: remove a run of the same name first.
      fall_back: when resuming, pass over a damaged checkpoint for the one before.
      changed: when resuming with other settings, go on with what they and the checkpoint have in common.
      runs: the folder of runs; this one's is a folder in it, named by the configuration.
    """
    from .checkpoint import CheckpointError
    from .config import ConfigError, load
    from .data import DataError
    from .train import RunError, RunWriteError
    from .train import train as run

    how = {"resume": resume, "overwrite": overwrite, "fall_back": fall_back, "changed": changed}
    try:
        summary = run(load(config, set), runs=runs, **how)
    except RunWriteError as error:
        print(error, file=sys.stderr)
        return 1
    except (ConfigError, CheckpointError, DataError, FileNotFoundError, RunError) as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:  # of the terminal, or of a file that was there a moment ago
        print(f"train: {error}.", file=sys.stderr)
        return 1
    return 130 if summary["interrupted"] else 0


def schedule(config: str, /, *, set: tuple[str, ...] = (), png: str | None = None) -> int:
    """Draw the learning rates that a configuration gives its run.

    Args:
      config: a YAML file, such as configs/stdlib_gpt.yaml.
      set: settings that win over the file, like train.steps=100; may be given several times.
      png: the file of a picture, too.
    """
    from .config import ConfigError, load
    from .train import RunWriteError, show_rates

    try:
        shown = show_rates(load(config, set), png=png)
    except RunWriteError as error:
        print(error, file=sys.stderr)
        return 1
    except (ConfigError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:  # of the terminal
        print(f"schedule: {error}.", file=sys.stderr)
        return 1
    return 0 if shown else 1


def plan(
    config: str,
    /,
    *,
    chip: str | None = None,
    mesh: str | None = None,
    set: tuple[str, ...] = (),
    budget: str | None = None,
    compare: tuple[str, ...] = (),
    compile: bool = False,
    model: str | None = None,
    png: str | None = None,
    html: str | None = None,
    json: bool = False,
) -> int:
    """Say what a run costs, before there is one.

    What each device holds at the fullest moment of a step, what devices send, how long a step takes at least,
    and what would take less. The exit code is 1 if it does not fit the chip, or the budget.

    Args:
      config: a YAML file, such as configs/gpt3_175b.yaml.
      chip: the kind of the devices: v4, v5e, v5p, v6e, tpu7x, A100, H100, H200, B200 or MI300X.
      mesh: other devices than the file's, like data=128,model=8.
      set: settings that win over the file, like train.batch=64; may be given several times.
      budget: bytes on each device, like 16GiB: choose formats, placement, micro-batches and recomputation so
        that it fits, and print the YAML.
      compare: another file, to be shown beside; may be given several times.
      compile: compile the step for that many TPUs, which need not be there, and show both beside each other.
      model: package.module:function, which returns abstract parameters, or parameters, loss and batch, in the
        place of the file's model.
      png: the file of a picture.
      html: the file of a page.
      json: for other programs.
    """
    from .config import ConfigError
    from .train import RunError, RunWriteError
    from .train.show_plan import Asked, show_plan

    asked = Asked(chip, mesh, set, budget, compare, compile, model, png, html, json)
    try:
        return show_plan(config, asked, functools.partial(print, flush=True))
    except RunWriteError as error:
        print(error, file=sys.stderr)
        return 1
    except (ConfigError, FileNotFoundError, RunError, TypeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2


def tokenize(
    path: str,
    /,
    *,
    tokenizer: str,
    out: str,
    end_of_text: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> int:
    """Turn a folder of text into files of token ids, a piece at a time.

    Args:
      path: the folder; its text files are read.
      tokenizer: a tokenizer.json of the library tokenizers.
      out: the folder for train.bin, validation.bin and tokens.json.
      end_of_text: the token that follows each file; by default the tokenizer's own, such as <|endoftext|>.
      seed: of which files validate.
      overwrite: replace files that are there.
    """
    from .data import DataError
    from .train import RunError
    from .train.tokenize_text import tokenize_text

    how = {"end_of_text": end_of_text, "seed": seed, "overwrite": overwrite}
    try:
        tokenize_text(path, tokenizer=tokenizer, out=out, **how)
    except (DataError, FileNotFoundError, RunError) as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:  # of the terminal
        print(f"tokenize: {error}.", file=sys.stderr)
        return 1
    return 0


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits."""
    words = sys.argv[1:] if arguments is None else arguments
    if words == ["--version"]:
        print(f"jaxopt_large {__version__}")
        return
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"jaxopt-large: {', '.join(missing)} not installed; the command line needs the extra `train` of "
            "the folder, wheel or address that jaxopt_large came from: pip install '.[train,viz]'",
            file=sys.stderr,
        )
        sys.exit(2)
    import tyro

    app: Any = tyro.extras.SubcommandApp()
    app.command(train, name="train")
    app.command(schedule, name="schedule")
    app.command(plan, name="plan")
    app.command(tokenize, name="tokenize")
    options = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.UseAppendAction)
    description = "Optimizers for JAX models that outgrow one device."
    try:
        code = app.cli(prog="jaxopt-large", description=description, args=words or ["--help"], config=options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("jaxopt-large: interrupted.", file=sys.stderr)
        code = 130
    except OSError as error:  # nobody reads what is printed, or the disk that it goes to is full
        print(f"jaxopt-large: {error}.", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor is the rest tried at the end
        code = 1
    sys.exit(code)
