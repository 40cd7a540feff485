"""Text as bytes: Python's own standard library, or any folder of text files."""

import contextlib
import hashlib
import os
import sysconfig
from pathlib import Path

import numpy as np

from .._errors import message
from ._dataset import Batch, DataError, Dataset

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


def stdlib_text(*, context: int, seed: int, validation_windows: int) -> Dataset:
    """The source of the Python that runs this, without its tests: real text, always at hand."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return folder_text(
        root,
        context=context,
        seed=seed,
        validation_windows=validation_windows,
        suffixes={".py"},
        name="stdlib",
    )


def folder_text(
    path: str | Path,
    *,
    context: int,
    seed: int,
    validation_windows: int,
    suffixes: set[str] | None = None,
    name: str | None = None,
) -> Dataset:
    """All text files under a folder, as bytes, split by file into training and validation.

    Args:
      path: the folder.
      context: tokens per example; an example holds one more, the last target.
      seed: of the split.
      validation_windows: validation examples, spread evenly over the validation files.
      suffixes: of the files to read; the usual ones of text and source code by default.
      name: for reports; the folder's by default.

    Raises:
      FileNotFoundError: there is no such folder.
      DataError: it holds no text, or too little for one example in each part.
    """
    root = Path(path)
    with contextlib.suppress(RuntimeError):  # there is no such user
        root = root.expanduser()
    if not os.path.isdir(root):
        raise FileNotFoundError(
            message(
                "data",
                f"folder does not exist, got {str(path)!r}",
                do="Give a folder of text files as data.path",
            )
        )
    wanted = suffixes or _TEXT
    files = sorted(
        f
        for f in root.rglob("*")
        if f.suffix in wanted and f.is_file() and not _SKIPPED & set(f.relative_to(root).parts[:-1])
    )
    digest, parts = hashlib.sha256(), {"train": [], "validation": []}
    for file in files:
        content, relative = file.read_bytes(), file.relative_to(root).as_posix()
        digest.update(relative.encode() + b"\0" + content)
        parts[_part(relative, seed)].append(content)
    if files and not parts["validation"]:  # a single file, or an unlucky few: the last tenth validates
        whole = b"\n".join(parts["train"])
        cut = int(len(whole) * (1 - _VALIDATION_SHARE))
        parts = {"train": [whole[:cut]], "validation": [whole[cut:]]}
    train, validation = (np.frombuffer(b"\n".join(parts[k]), np.uint8) for k in ("train", "validation"))
    for part, content in (("training", train), ("validation", validation)):
        if len(content) <= context:
            got = f"got {len(content)} bytes in {len(files)} files"
            raise DataError(
                message(
                    "data",
                    f"too little {part} text in {str(path)!r}, {got}",
                    allowed=f"more than data.context = {context} bytes",
                    do=f"Add files that end in {', '.join(sorted(wanted))}",
                )
            )

    def example(index: int) -> Batch:
        return {"tokens": train[index * context : (index + 1) * context + 1].astype(np.int32)}

    return Dataset(
        name=name or root.name,
        size=(len(train) - 1) // context,
        example=example,
        validation={"tokens": _spread(validation, context, validation_windows)},
        tokens_per_example=context,
        unit="byte",
        facts={
            "sha256": digest.hexdigest(),
            "files": len(files),
            "train_bytes": len(train),
            "validation_bytes": len(validation),
        },
    )


def _part(relative: str, seed: int) -> str:
    """A file's part depends on its name and the seed alone: other files may come and go."""
    number = int.from_bytes(hashlib.sha256(f"{seed}:{relative}".encode()).digest()[:8], "big")
    return "validation" if number < _VALIDATION_SHARE * 2**64 else "train"


def _spread(content: np.ndarray, context: int, windows: int) -> np.ndarray:
    """`windows` windows at even distances, or all there are; they overlap where the text is short."""
    windows = min(windows, len(content) - context)  # no more than there are
    starts = np.linspace(0, len(content) - context - 1, windows).astype(np.int64)
    return np.stack([content[s : s + context + 1] for s in starts]).astype(np.int32)
