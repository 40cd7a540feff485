"""A checkpoint on its way to the disk: aside, until it is whole."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .._errors import message
from .._processes import is_beside, is_writer, on_any, on_any_later
from .._writing import not_written, number_of
from ._files import sync_to_disk, take_name
from ._leaves import Form
from ._manifest import NotWrittenError, write_manifest
from ._parts import Part, covers, parts_of, read_parts, sealed, write_parts

ARRAYS, FIRST = "arrays", "arrays.0"  # the second of what was written before a step went on
_FILES, _ENTRIES = 64 * 2**10, 3 * 2**9  # bytes at most beside the arrays', of each checkpoint and array


class Writing:
    """A checkpoint that is being written, in stages that all processes go through together.

    Args:
      target: the name that it will have.
      entries: of the arrays, for the manifest.
      metadata: for the manifest.
      size: bytes of the arrays.
      write: (folder, arrays) -> written.
    """

    def __init__(
        self,
        target: Path,
        entries: dict[str, Any],
        metadata: dict[str, Any],
        size: int,
        write: Callable[..., None],
    ):
        self._write = write
        self._target, self._aside = target, target.with_name(f".{target.name}.part")
        self._entries, self._metadata, self._size = entries, metadata, size

    def begin(self) -> None:
        """Makes the folder anew."""
        self._stage(lambda: is_writer() and _make_anew(self._aside))

    def add(self, arrays: dict[str, Any], *, first: bool = False) -> None:
        """Writes arrays, and sums up what this process has of them meanwhile."""
        folder = FIRST if first else ARRAYS
        filled = {name: x for name, x in arrays.items() if x.size}  # orbax takes no empty arrays

        def write() -> None:
            with ThreadPoolExecutor(1) as beside:
                sums = beside.submit(parts_of, arrays)
                if filled:
                    self._write(self._aside / folder, filled)
                write_parts(self._aside, folder, sums.result())

        self._stage(write)
        for name in arrays if first else ():
            self._entries[name]["folder"] = folder

    def finish(self) -> None:
        """Describes it, and gives it its name."""
        self._stage(lambda: is_writer() and self._finish())

    def _finish(self) -> None:
        for name, parts in read_parts(self._aside).items():
            self._entries[name] |= {"checksum": sealed(parts), "parts": parts}
        for name, entry in self._entries.items():
            if not covers(Form.of_entry(entry).disk_shape, map(Part.of_entry, entry.get("parts", ()))):
                raise OSError(f"what processes have written of {name} is not all there")
        write_manifest(self._aside, self._entries, self._metadata)
        sync_to_disk(self._aside)
        take_name(self._aside, self._target)

    def _stage(self, stage: Callable[[], Any]) -> None:
        """Does something on all processes; if one fails, nothing is left, and all raise."""
        failure: BaseException | None = None
        try:
            stage()
        except BaseException as error:  # tensorstore and orbax raise many kinds when the disk is full
            failure = error
        failed = failure is not None
        if on_any_later(failed, "written") if is_beside() else on_any(failed):
            if is_writer():
                shutil.rmtree(self._aside, ignore_errors=True)
            if failure is not None and not isinstance(failure, Exception):
                raise failure  # it is to end the program
            raise self._not_written(failure)

    def _not_written(self, failure: BaseException | None) -> NotWrittenError:
        if failure is None:
            wrong = (
                f"{str(self._target)!r} could not be written, another process has failed to write its part"
            )
            return NotWrittenError(message("save", wrong))
        needed = self._size + _FILES + len(self._entries) * _ENTRIES
        error = NotWrittenError(not_written("save", self._target, failure, needed=needed))
        error.errno = number_of(failure)
        if (
            error.errno is None
        ):  # else the message says all, and thousands of lines of threads' tracebacks less
            error.__cause__ = failure
        return error


def _make_anew(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
