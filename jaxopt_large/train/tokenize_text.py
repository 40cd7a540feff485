"""`jaxopt-large tokenize`: a folder of text as files of token ids, and the settings that train on them."""

import functools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from .._errors import message
from .._tables import size
from ..data import Cache, DataError, Source, expanded, found_documents
from ..data.tokenizing import Tokenizer, write_ids
from ._errors import RunError

_FACTS = "tokens.json"


def tokenize_text(
    path: str | Path,
    *,
    tokenizer: str | Path,
    out: str | Path,
    end_of_text: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Writes the ids of all text files under a folder: `train.bin`, `validation.bin` and `tokens.json`.

    Files are read a piece at a time, and divided as `data.kind: text` divides them.

    Args:
      path: the folder of text.
      tokenizer: a file of the `tokenizers` library.
      out: the folder for what is written.
      end_of_text: the token that follows each file; by default the tokenizer's own, if its name is usual.
      seed: of what validates.
      overwrite: replace files that are there.
      console: where to show progress; standard output by default.

    Returns:
      What stands in `tokens.json`.

    Raises:
      FileNotFoundError: there is no such folder, or tokenizer.
      DataError: a file is not UTF-8 or changes; there is no text; what is made cannot be written.
      RunError: files are there already.
    """
    console, folder = console or Console(), Path(out)
    made, cache = Tokenizer(tokenizer, end_of_text), Cache(folder)
    there = [name for name in ("train.bin", "validation.bin") if (folder / name).exists()]
    if there and not overwrite:
        wrong = f"ids are there already, got {str(folder / there[0])!r}"
        raise RunError(message("tokenize", wrong, do="Add --overwrite, or take another folder"))
    if folder.resolve().is_relative_to(expanded(path).resolve()):
        wrong = f"what is written would be read the next time, got {str(out)!r} in {str(path)!r}"
        raise RunError(message("tokenize", wrong, do="Take a folder outside of the text's"))
    documents = found_documents(path, seed, Cache(None))
    if not documents.all:
        raise DataError(message("tokenize", f"there is no text in {str(path)!r}"))
    began, counts = time.monotonic(), {}
    for name, sources in (("train", documents.train), ("validation", documents.validation)):
        file = folder / f"{name}.bin"
        if not sources:
            file.unlink(missing_ok=True)
            continue
        with _bar(console, name, sources) as advance:
            write = functools.partial(
                write_ids, root=documents.root, sources=sources, tokenizer=made, progress=advance
            )
            cache.write(file, write)
        counts[name] = file.stat().st_size // made.dtype.itemsize
    facts: dict[str, Any] = {
        "text_sha256": documents.sha256,
        "tokenizer_sha256": made.sha256,
        "files": len(documents.all),
        "ids": counts,
        "vocabulary": made.size,
        "dtype": str(made.dtype),
        "end_of_text": made.end_of_text,
    }
    cache.write(folder / _FACTS, lambda aside: aside.write_text(json.dumps(facts, indent=1) + "\n"))
    read = sum(source.size for source in documents.all)
    seconds = time.monotonic() - began
    told = f"{size(read)} of text, {sum(counts.values()):,} ids in {seconds:.1f} s. To train on them:"
    console.print(told, highlight=False, soft_wrap=True)
    console.print(_settings(folder, facts), markup=False, highlight=False, soft_wrap=True, end="")
    return facts


def _settings(folder: Path, facts: dict[str, Any]) -> str:
    """The lines of a configuration that take the ids."""
    data = {"kind": "tokens", "path": str(folder / "train.bin"), "dtype": facts["dtype"]}
    if "validation" in facts["ids"]:
        data["validation"] = str(folder / "validation.bin")
    if facts["end_of_text"] is not None:
        data["end_of_text"] = facts["end_of_text"]
    return yaml.safe_dump({"data": data, "model": {"vocabulary": facts["vocabulary"]}}, sort_keys=False)


@contextmanager
def _bar(console: Console, name: str, sources: Sequence[Source]) -> Iterator[Callable[[int], None]]:
    """Shows how much is read, in a terminal."""
    columns = TextColumn(name), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=sum(source.size for source in sources))
        yield lambda read: bar.update(task, completed=read)
