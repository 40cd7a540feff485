"""The manifest of a checkpoint: what is in it, and by what one can tell that it still is."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._errors import message
from ._files import described, file_problems

# version 1 did not say what an array stood for, version 2 had one checksum of each array
_FORMAT, _VERSION = "jaxopt_large checkpoint", 3
_MANIFEST = "manifest.json"
_SMALL = 2**20  # bytes of a file that describes arrays


class CheckpointError(ValueError):
    """A checkpoint is damaged, truncated, not one of ours or not written; the message names the file."""


class NotWrittenError(CheckpointError, OSError):
    """A checkpoint could not be written, and nothing of it is there; `errno` is the system's reason."""


def as_json(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Metadata as it will be read back: keys are strings, tuples are lists.

    Raises:
      TypeError: JSON does not hold it.
    """
    try:
        return json.loads(json.dumps(dict(metadata or {})))
    except (TypeError, ValueError) as error:
        raise TypeError(
            message(
                "save",
                f"metadata is not JSON ({error}), got {metadata!r}",
                allowed="dictionaries, lists, strings, numbers, booleans and None",
                do="Save arrays in the tree",
            )
        ) from error


def write_manifest(folder: Path, arrays: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Describes the files in `folder`, and writes that beside them."""
    content = {"arrays": arrays, "files": described(folder), "metadata": metadata}
    seal(folder / _MANIFEST, {"format": _FORMAT, "version": _VERSION, **content})


def seal(file: Path, content: dict[str, Any]) -> None:
    """Writes the content and its CRC."""
    content = json.loads(json.dumps(content))  # as it will be read: the CRC must not see other keys
    file.write_text(json.dumps({"crc32": _crc(content), "content": content}, indent=1))


def read_manifest(source: Path) -> dict[str, Any]:
    """The content of a checkpoint's manifest.

    Raises:
      FileNotFoundError: nothing stands at `source`.
      CheckpointError: the manifest is missing, damaged or not one of ours.
    """
    file = source / _MANIFEST
    if not source.exists():
        raise FileNotFoundError(message("restore", f"there is no checkpoint, got {str(source)!r}"))
    if not file.is_file():
        wrong = f"not a checkpoint of jaxopt_large: it has no {_MANIFEST}, got {str(source)!r}"
        raise CheckpointError(message("restore", wrong))
    damaged = message("restore", f"{str(file)!r} is damaged", do="Restore an earlier checkpoint")
    try:
        outer = json.loads(file.read_text())
        content = outer["content"]
        crc = _crc(content)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(damaged) from error
    if crc != outer.get("crc32"):
        raise CheckpointError(damaged)
    if content.get("format") != _FORMAT or content.get("version", 0) > _VERSION:
        raise CheckpointError(
            message(
                "restore",
                f"{str(source)!r} is of another format, got {content.get('format')!r} version "
                f"{content.get('version')!r}",
                allowed=f"{_FORMAT!r} up to version {_VERSION}",
            )
        )
    return content


def check_files(source: Path, manifest: dict[str, Any], *, arrays: bool = False) -> None:
    """Raises for every file that is not as it was written.

    Args:
      source: the checkpoint.
      manifest: its.
      arrays: read the files of arrays too? The arrays' checksums find the damage without, and are computed
        of what is read anyway; then this names the file.
    """
    up_to = None if arrays else _SMALL
    file_problems("restore", source, manifest["files"], up_to=up_to).raise_if_any(CheckpointError)


def _crc(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, indent=1, sort_keys=True).encode())
