"""Checkpoints that say so when they are damaged.

A checkpoint is a folder: the arrays as orbax writes them, and a manifest with each array's path,
shape, dtype and checksum, and each file's size and CRC. It is written aside and takes its name in one
rename, so that a folder of that name is always whole. Arrays are written in their logical shape: nothing in a
checkpoint depends on the devices that held it, and the checksum of a sharded array is that of the array.
"""

import json
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from ._errors import Problems, message
from ._paths import leaf_paths, nearest
from .placement.logical import repadded, unpadded, unpadded_like

_FORMAT, _VERSION = "jaxopt_large checkpoint", 1
_MANIFEST, _ARRAYS = "manifest.json", "arrays"
_CHUNK = 2**20  # bytes of a file read at a time
_SEED = 0x9E3779B9  # of the checksum: a zero at index 0 must count
_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}  # bytes of an element -> its bits


class CheckpointError(ValueError):
    """A checkpoint is damaged, truncated or not one of ours; the message names the file."""


def save(
    path: str | os.PathLike[str],
    tree: Any,
    *,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a tree of arrays; either all of it is there afterwards, or nothing.

    States under `zero` (in jit) are written without padding, so that they can be read on any mesh.

    Args:
      path: the folder to make.
      tree: any tree of arrays, numbers and typed random keys.
      metadata: anything JSON holds, given back by `read_metadata`.
      overwrite: replace what stands at `path`.

    Raises:
      FileExistsError: something stands at `path` already, and it may not be overwritten.
      ModuleNotFoundError: orbax-checkpoint is missing; install jaxopt_large[train].

    >>> path = os.path.join(tempfile.mkdtemp(), "step_1")
    >>> jl.save(path, {"w": jnp.arange(3.0)})
    >>> jl.restore(path, {"w": jnp.zeros(3)})["w"].tolist()
    [0.0, 1.0, 2.0]
    """
    target = Path(path).absolute()
    if target.exists() and not overwrite:
        raise FileExistsError(
            message(
                "save",
                f"something is there already, got {str(target)!r}",
                do="Pass overwrite=True to replace it",
            )
        )
    arrays = _named(unpadded(tree))
    checksums = _checksums(arrays)
    aside = target.with_name(f".{target.name}.part")
    if _is_writer():
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    _barrier(f"aside {target}")
    stored = {name: x for name, x in arrays.items() if x.size}  # orbax takes no empty arrays
    if stored:
        _write_arrays(aside / _ARRAYS, stored)
    if _is_writer():
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "arrays": {
                name: {"shape": list(x.shape), "dtype": str(x.dtype), "checksum": checksums[name]}
                for name, x in arrays.items()
            },
            "files": {
                f.relative_to(aside).as_posix(): {"bytes": f.stat().st_size, "crc32": _crc32(f)}
                for f in sorted(aside.rglob("*"))
                if f.is_file()
            },
            "metadata": dict(metadata or {}),
        }
        _write_manifest(aside / _MANIFEST, content)
        _sync_to_disk(aside)
        _take_name(aside, target)
    _barrier(f"written {target}")


def restore(path: str | os.PathLike[str], like: Any, *, verify: bool = True) -> Any:
    """Reads a tree of arrays back, each to where `like` has it.

    Args:
      path: a folder that `save` made.
      like: a tree of the structure, shapes and dtypes saved; arrays, or `jax.ShapeDtypeStruct`s with a
        sharding. NumPy arrays and numbers come back as such. Their values are not used.
      verify: compare the arrays' checksums; files are checked in any case.

    Returns:
      A tree like `like`, on its devices.

    Raises:
      FileNotFoundError: nothing stands at `path`.
      CheckpointError: the checkpoint is damaged, truncated or not one of ours.
      ValueError: it holds other arrays than `like`; all differences are named.
    """
    source = Path(path).absolute()
    manifest = _read_manifest(source)
    targets = _named(unpadded_like(like))
    _check_same(source, manifest["arrays"], targets)
    _check_files(source, manifest["files"])
    arrays = _read_arrays(source / _ARRAYS, {n: x for n, x in targets.items() if x.size})
    for name, x in targets.items():
        if not x.size:
            arrays[name] = jnp.zeros(x.shape, x.dtype, device=getattr(x, "sharding", None))
    if verify:
        _check_sums(source, manifest["arrays"], _checksums(arrays))
    logical = unpadded_like(like)
    leaves, treedef = jax.tree.flatten(logical)
    values = [_as_before(arrays[n], x) for n, x in zip(leaf_paths(logical), leaves, strict=True)]
    return repadded(treedef.unflatten(values), like)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata that `save` was given.

    Raises:
      FileNotFoundError: nothing stands at `path`.
      CheckpointError: the manifest is missing, damaged or not one of ours.
    """
    return _read_manifest(Path(path).absolute())["metadata"]


# --- arrays and their names ---------------------------------------------------------------------------


def _named(tree: Any) -> dict[str, Any]:
    """Path -> array; a random key stands as its data."""
    names, leaves = leaf_paths(tree), jax.tree.leaves(tree)
    named = {name or "value": _plain(x) for name, x in zip(names, leaves, strict=True)}
    if len(named) != len(names):
        twice = sorted({n for n in names if names.count(n) > 1})
        raise ValueError(message("checkpoint", f"paths are not unique, got {twice!r}"))
    return named


def _plain(x: Any) -> Any:
    if isinstance(x, jax.ShapeDtypeStruct):
        return x
    if isinstance(x, jax.Array):
        return jax.random.key_data(x) if _is_key(x) else x
    x = np.asarray(x)
    # without x64 JAX would cut 64 bits down to 32
    return x.reshape(*x.shape, 1).view(np.uint32) if x.dtype.itemsize == 8 else x


def _is_key(x: Any) -> TypeGuard[jax.Array]:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _as_before(x: Array, like: Any) -> Any:
    """The restored array as the kind of thing that `like` is."""
    if isinstance(like, jax.Array | jax.ShapeDtypeStruct):
        return jax.random.wrap_key_data(x, impl=jax.random.key_impl(like)) if _is_key(like) else x
    host = np.asarray(like)
    value = np.asarray(x).view(host.dtype).reshape(host.shape)
    return value if isinstance(like, np.ndarray) else type(like)(value.item())


def _check_same(source: Path, saved: dict[str, Any], targets: dict[str, Any]) -> None:
    problems = Problems("restore")
    where = f"checkpoint {str(source)!r}"
    for name in sorted(targets.keys() - saved.keys()):
        problems.add(
            f"{where} has no array", at=name, allowed=f"the nearest are {nearest(name, sorted(saved))}"
        )
    for name in sorted(saved.keys() - targets.keys()):
        problems.add(f"{where} holds an array that was not asked for", at=name)
    for name in sorted(saved.keys() & targets.keys()):
        was = (tuple(saved[name]["shape"]), saved[name]["dtype"])
        now = (tuple(targets[name].shape), str(targets[name].dtype))
        if was != now:
            problems.add(f"{where} has {was[1]}{list(was[0])}, asked for {now[1]}{list(now[0])}", at=name)
    if problems.found:
        problems.found.append("It belongs to another model or rule.")
    problems.raise_if_any()


# --- checksums ----------------------------------------------------------------------------------------


def _checksums(arrays: dict[str, Any]) -> dict[str, str]:
    """Path -> checksum. One compilation for all arrays on the same devices."""
    groups: dict[Any, dict[str, Any]] = {}
    for name, x in arrays.items():
        key = frozenset(x.sharding.device_set) if isinstance(x, jax.Array) else None
        groups.setdefault(key, {})[name] = x
    found = {}
    for group in groups.values():
        for name, words in jax.device_get(_checksum_tree(group)).items():
            found[name] = "".join(f"{int(w):08x}" for w in words)
    return found


@jax.jit
def _checksum_tree(tree: dict[str, Array]) -> dict[str, UInt32[Array, "2"]]:
    return {name: _checksum(x) for name, x in tree.items()}


def _checksum(x: Array) -> UInt32[Array, "2"]:
    """64 bits that depend on every bit and its place, and not on how the array is divided.

    Each element's bits are mixed with its index in the global array; the sum over elements modulo
    2^32 does not depend on their order.
    """
    x = x.astype(jnp.uint8) if x.dtype == bool else x
    words = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.full(words.shape, _SEED + words.ndim, jnp.uint32)
    for dim in range(words.ndim):
        place = _mix(place ^ jax.lax.broadcasted_iota(jnp.uint32, words.shape, dim))
    once = _mix(words ^ place)
    return jnp.stack([jnp.sum(once, dtype=jnp.uint32), jnp.sum(_mix(once + place), dtype=jnp.uint32)])


def _mix(h: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """The finalizer of MurmurHash3: every bit of the input moves half the bits of the output."""
    h = (h ^ (h >> jnp.uint32(16))) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> jnp.uint32(13))) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> jnp.uint32(16))


def _check_sums(source: Path, saved: dict[str, Any], found: dict[str, str]) -> None:
    problems = Problems("restore")
    for name, checksum in found.items():
        if checksum != saved[name]["checksum"]:
            problems.add(
                f"checkpoint {str(source)!r} is damaged, its checksum does not fit, got {checksum}",
                at=name,
                do="Restore an earlier one",
            )
    problems.raise_if_any(CheckpointError)


# --- files --------------------------------------------------------------------------------------------


def _orbax() -> Any:
    import orbax.checkpoint as ocp  # imported here: it takes a second, and belongs to an extra

    return ocp


def _write_arrays(folder: Path, arrays: dict[str, Any]) -> None:
    ocp = _orbax()
    checkpointer = ocp.Checkpointer(ocp.StandardCheckpointHandler())
    checkpointer.save(folder, args=ocp.args.StandardSave(arrays))
    checkpointer.close()


def _read_arrays(folder: Path, targets: dict[str, Any]) -> dict[str, Any]:
    if not targets:
        return {}
    ocp = _orbax()
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or here)
        for name, x in targets.items()
    }
    checkpointer = ocp.Checkpointer(ocp.StandardCheckpointHandler())
    try:
        return dict(checkpointer.restore(folder, args=ocp.args.StandardRestore(wanted)))
    except Exception as error:  # tensorstore and orbax raise many kinds for a damaged file
        raise CheckpointError(
            message(
                "restore",
                f"checkpoint {str(folder.parent)!r} is damaged, its arrays cannot be read",
                do="Restore an earlier one",
            )
        ) from error
    finally:
        checkpointer.close()


def _write_manifest(file: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=1, sort_keys=True)
    file.write_text(json.dumps({"crc32": zlib.crc32(text.encode()), "content": json.loads(text)}, indent=1))


def _read_manifest(source: Path) -> dict[str, Any]:
    file = source / _MANIFEST
    if not source.exists():
        raise FileNotFoundError(message("restore", f"there is no checkpoint, got {str(source)!r}"))
    if not file.is_file():
        raise CheckpointError(
            message(
                "restore", f"not a checkpoint of jaxopt_large: it has no {_MANIFEST}, got {str(source)!r}"
            )
        )
    damaged = message("restore", f"{str(file)!r} is damaged", do="Restore an earlier checkpoint")
    try:
        outer = json.loads(file.read_text())
        content = outer["content"]
        crc = zlib.crc32(json.dumps(content, indent=1, sort_keys=True).encode())
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(damaged) from error
    if crc != outer.get("crc32"):
        raise CheckpointError(damaged)
    if content.get("format") != _FORMAT or content.get("version", 0) > _VERSION:
        raise CheckpointError(
            message(
                "restore",
                f"{str(file)!r} is of another format, "
                f"got {content.get('format')!r}, version {content.get('version')!r}",
                allowed=f"{_FORMAT!r} up to version {_VERSION}",
            )
        )
    return content


def _check_files(source: Path, files: dict[str, dict[str, int]]) -> None:
    problems = Problems("restore")
    for name, saved in files.items():
        file = source / name
        size = file.stat().st_size if file.is_file() else None
        again = "Restore an earlier checkpoint"
        if size is None:
            problems.add(f"a file is missing, {str(file)!r}", do=again)
        elif size != saved["bytes"]:
            wrong = f"a file is truncated or damaged, {str(file)!r} has {size} bytes"
            problems.add(wrong, allowed=f"{saved['bytes']} were written", do=again)
        elif jax.process_count() == 1 and _crc32(file) != saved["crc32"]:
            # many processes need not read all files: the arrays' checksums find the damage too
            problems.add(f"a file is damaged, {str(file)!r}", do=again)
    problems.raise_if_any(CheckpointError)


def _crc32(file: Path) -> int:
    crc = 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def _sync_to_disk(folder: Path) -> None:
    """Files first, then the folders that name them: after the rename all of it survives a power cut."""
    entries = sorted(folder.rglob("*"), key=lambda f: len(f.parts), reverse=True)
    for entry in [*[e for e in entries if e.is_file()], *[e for e in entries if e.is_dir()], folder]:
        descriptor = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _take_name(aside: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    aside.rename(target)
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    shutil.rmtree(old, ignore_errors=True)


# --- several processes --------------------------------------------------------------------------------


def _is_writer() -> bool:
    return jax.process_index() == 0


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
