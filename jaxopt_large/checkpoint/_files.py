"""Files that are whole or not there: CRCs, and folders that take their name in one rename."""

import os
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .._errors import Problems, message

_CHUNK = 2**20  # bytes of a file read at a time
_THREADS = 4  # that read files; zlib lets others run meanwhile


def described(folder: Path) -> dict[str, dict[str, int]]:
    """Relative path -> size and CRC of every file in `folder`."""
    files = [f for f in sorted(folder.rglob("*")) if f.is_file()]
    with ThreadPoolExecutor(_THREADS) as pool:
        sums = list(pool.map(crc32, files))
    return {
        f.relative_to(folder).as_posix(): {"bytes": f.stat().st_size, "crc32": crc}
        for f, crc in zip(files, sums, strict=True)
    }


def file_problems(
    who: str, source: Path, files: dict[str, dict[str, int]], *, up_to: int | None = None
) -> Problems:
    """What is wrong with the files in `source`, given what was `described`; CRCs of those `up_to` a size."""
    problems = Problems(who)
    for name, saved in files.items():
        file = source / name
        size = file.stat().st_size if file.is_file() else None
        again = "Restore an earlier checkpoint"
        if size is None:
            problems.add(f"a file is missing, {str(file)!r}", do=again)
        elif size != saved["bytes"]:
            wrong = f"a file is truncated or damaged, {str(file)!r} has {size} bytes"
            problems.add(wrong, allowed=f"{saved['bytes']} were written", do=again)
        elif (up_to is None or size <= up_to) and crc32(file) != saved["crc32"]:
            problems.add(f"a file is damaged, {str(file)!r}", do=again)
    return problems


def crc32(file: Path) -> int:
    crc = 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def sync_to_disk(folder: Path) -> None:
    """Files first, then the folders that name them: after the rename all of it survives a power cut."""
    entries = sorted(folder.rglob("*"), key=lambda f: len(f.parts), reverse=True)
    for entry in [*[e for e in entries if e.is_file()], *[e for e in entries if e.is_dir()], folder]:
        descriptor = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def local(who: str, path: str | os.PathLike[str]) -> Path:
    """The folder of that name on this machine.

    Raises:
      ValueError: the path is of a remote store: what is whole there takes more than a rename.
    """
    if "://" in (text := os.fspath(path)):
        wrong = f"a remote store is not supported, got {text!r}"
        do = "Write to a folder, mounted or local, and copy it from there"
        raise ValueError(message(who, wrong, allowed="folders whose files can be renamed and synced", do=do))
    return Path(path).absolute()


def standing(target: Path) -> Path:
    """The folder of that name; if a replacement was killed before it had the name, what it replaces."""
    old = _replaced(target)
    return old if old.exists() and not target.exists() else target


def take_name(aside: Path, target: Path) -> None:
    """Renames `aside` to `target`, which is replaced if it is there.

    At every moment one of the two is whole, and `standing` finds it.
    """
    old, replaces = _replaced(target), target.exists()
    if replaces:
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    try:
        aside.rename(target)
    except OSError:
        if replaces:
            old.rename(target)
        raise
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    shutil.rmtree(old, ignore_errors=True)


def _replaced(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")
