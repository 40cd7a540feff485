"""Text: Python's own standard library, or any folder of text files; as bytes, or as ids of a tokenizer."""

import dataclasses
import functools
import hashlib
import os
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._errors import message
from ._cache import NOTHING, Cache, hashed
from ._dataset import DataError, Dataset
from ._examples import Cut, dataset
from ._files import Reader, Source, expanded, files_under
from ._streams import Joined, Part, Stream

_VALIDATION_SHARE = 0.1  # of the files
_SKIPPED = {"test", "tests", "idle_test", "site-packages", "__pycache__", "lib2to3", "ensurepip"}
_TEXT = {
    ".py",
    ".txt",
    ".md",
    ".rst",
    ".tex",
    ".c",
    ".h",
    ".cpp",
    ".js",
    ".ts",
    ".java",
    ".html",
    ".csv",
    ".json",
}
_NEWLINE = 10
_CHUNK = 2**22  # bytes that are hashed at a time
_BYTE = np.dtype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Documents:
    """The text files under a folder, each a document: those that train, and those that validate."""

    root: Path
    suffixes: frozenset[str]
    train: Sequence[Source]
    validation: Sequence[Source]

    @functools.cached_property
    def all(self) -> list[Source]:
        """In the order of their names."""
        return sorted([*self.train, *self.validation], key=lambda s: Path(s.name))

    @functools.cached_property
    def sha256(self) -> str:
        """Of their names, sizes and contents."""
        return known_by(self.all)

    @functools.cached_property
    def parts_sha256(self) -> str:
        """Of those of each part."""
        return f"{known_by(self.train)}-{known_by(self.validation)}"


def known_by(sources: Sequence[Source]) -> str:
    """A hash of the names, sizes and contents of files."""
    told = "".join(f"{s.sha256} {s.size} {s.name}\n" for s in sources)
    return hashlib.sha256(os.fsencode(told)).hexdigest()


def stdlib_text(*, context: int, seed: int, validation_windows: int, cache: Cache = NOTHING) -> Dataset:
    """The source of the Python that runs this, without its tests: real text, always at hand."""
    root = Path(sysconfig.get_paths()["stdlib"])
    documents = found_documents(root, seed, cache, suffixes={".py"})
    cut = Cut(context, validation_windows, vocabulary=None)
    return dataclasses.replace(_bytes(documents, cut, cache), name="stdlib")


def folder_text(
    path: str | Path,
    *,
    context: int,
    seed: int,
    validation_windows: int,
    cache: Cache = NOTHING,
    tokenizer: str | None = None,
    end_of_text: int | str | None = None,
    pack: bool = False,
    vocabulary: int | None = None,
) -> Dataset:
    """All text files under a folder, split by file into training and validation.

    Args:
      path: the folder.
      context: tokens per example; an example holds one more, the last target.
      seed: of the split.
      validation_windows: validation examples, spread evenly over the validation files.
      cache: keeps the files' hashes, and their ids.
      tokenizer: a file of the `tokenizers` library; bytes are the ids without one.
      end_of_text: the id, or the tokenizer's token, that follows each file. By default the tokenizer's own,
        if its name is a usual one; a newline between files where there is no tokenizer.
      pack: an example is whole files, as many as fit; by default whatever stands next to each other.
      vocabulary: ids are below it; None: not checked.

    Raises:
      FileNotFoundError: there is no such folder, or tokenizer.
      DataError: it holds no text, or too little for one example in each part; the tokenizer is none, or has
        more ids than the vocabulary.
    """
    documents = found_documents(path, seed, cache)
    if tokenizer is None:
        if isinstance(end_of_text, str):
            wrong = f"data.end_of_text is a token, got {end_of_text!r}, and there is no data.tokenizer"
            raise DataError(message("data", wrong, do="Give the tokenizer, or an id"))
        return _bytes(documents, Cut(context, validation_windows, vocabulary, end_of_text, pack), cache)
    from .tokenizing import tokenized  # imported here: it is an extra

    kept = tokenized(documents, tokenizer, end_of_text, cache, vocabulary)
    cut = Cut(context, validation_windows, vocabulary, kept.end_of_text, pack)
    files, facts = _known(documents), _facts(documents, kept.sha256)
    return dataset(
        documents.root,
        cut,
        kept.train,
        kept.validation,
        cache,
        unit="token",
        facts=facts,
        key=kept.key,
        files=files,
    )


def found_documents(
    path: str | Path, seed: int, cache: Cache, *, suffixes: set[str] | None = None
) -> Documents:
    """The text files under a folder; the usual ones of text and source code by default.

    Raises:
      FileNotFoundError: there is no such folder.
      DataError: there is no text in it, or it changes.
    """
    root = expanded(path)
    if not os.path.isdir(root):
        raise FileNotFoundError(
            message(
                "data",
                f"folder does not exist, got {str(path)!r}",
                do="Give a folder of text files as data.path",
            )
        )
    wanted = suffixes or _TEXT
    files = [
        f for f in files_under(root, cache.beside) if f.suffix in wanted and not _SKIPPED & set(f.parts[:-1])
    ]
    parts: dict[str, list[Source]] = {"train": [], "validation": []}
    for source in hashed(root, [f.as_posix() for f in files], cache):
        parts[_part(source.name, seed)].append(source)
    return Documents(root, frozenset(wanted), parts["train"], parts["validation"])


def _bytes(documents: Documents, cut: Cut, cache: Cache) -> Dataset:
    """Documents as bytes, with a newline or the end of text between them."""
    reader = Reader()

    def joined(sources: Sequence[Source]) -> Joined:
        def read(row: int, start: int, stop: int) -> np.ndarray:
            source = sources[row]
            return np.frombuffer(
                reader.read(documents.root / source.name, source, start, stop - start), _BYTE
            )

        def place(row: int, at: int) -> str:
            return f"{str(documents.root / sources[row].name)!r} at byte {at}"

        joiner, closing = (
            (_NEWLINE, False) if cut.end_of_text is None else (cut.end_of_text, len(sources) > 0)
        )
        return Joined([s.size for s in sources], read, place, joiner=joiner, closing=closing)

    train, validation = joined(documents.train), joined(documents.validation)
    parts: tuple[Stream, Stream] = (train, validation)
    if not documents.validation and documents.train:
        at = int(train.length * (1 - _VALIDATION_SHARE))
        parts = Part(train, 0, at), Part(train, at, train.length)
    facts, key = _facts(documents, documents.sha256), documents.parts_sha256
    do = f"Add files that end in {', '.join(sorted(documents.suffixes))}"
    files = _known(documents)
    made = dataset(
        documents.root,
        cut,
        [parts[0]],
        [parts[1]],
        cache,
        unit="byte",
        facts=facts,
        key=key,
        files=files,
        do=do,
    )
    return dataclasses.replace(made, former=lambda: _former(documents))


def _facts(documents: Documents, sha256: str) -> dict[str, Any]:
    return {"sha256": sha256, "hashed": "by file", "files": len(documents.all)}


def _known(documents: Documents) -> dict[str, tuple[int, str]]:
    return {s.name: (s.size, s.sha256) for s in documents.all}


def _part(relative: str, seed: int) -> str:
    """A file's part depends on its name and the seed alone: other files may come and go."""
    number = int.from_bytes(hashlib.sha256(os.fsencode(f"{seed}:{relative}")).digest()[:8], "big")
    return "validation" if number < _VALIDATION_SHARE * 2**64 else "train"


def _former(documents: Documents) -> str:
    """The hash of everything in one piece, by which checkpoints knew text before there was an index."""
    digest = hashlib.sha256()
    for source in documents.all:
        digest.update(os.fsencode(source.name) + b"\0")
        with (documents.root / source.name).open("rb") as stream:
            while piece := stream.read(_CHUNK):
                digest.update(piece)
    return digest.hexdigest()
