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
from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._checksums import checksums
from ._errors import Problems, message
from ._files import described, file_problems, standing, sync_to_disk, take_name
from ._identity import identities
from ._paths import leaf_paths, nearest
from .placement.logical import repadded, unpadded, unpadded_like

_FORMAT, _VERSION = "jaxopt_large checkpoint", 1
_MANIFEST, _ARRAYS = "manifest.json", "arrays"


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
    With `overwrite` it is the old checkpoint or the new one that is there, whenever the process dies.

    Args:
      path: the folder to make.
      tree: any tree of arrays, numbers and typed random keys.
      metadata: anything JSON holds, given back by `read_metadata`; keys become strings.
      overwrite: replace what stands at `path`.

    Raises:
      FileExistsError: something stands at `path` already, and it may not be overwritten.
      TypeError: JSON does not hold the metadata; nothing is written.
      ModuleNotFoundError: orbax-checkpoint is missing; install jaxopt_large[train].

    >>> path = os.path.join(tempfile.mkdtemp(), "step_1")
    >>> jl.save(path, {"w": jnp.arange(3.0)})
    >>> jl.restore(path, {"w": jnp.zeros(3)})["w"].tolist()
    [0.0, 1.0, 2.0]
    """
    target = Path(path).absolute()
    if standing(target).exists() and not overwrite:
        raise FileExistsError(
            message(
                "save",
                f"something is there already, got {str(target)!r}",
                do="Pass overwrite=True to replace it",
            )
        )
    metadata = _as_json(metadata)
    logical = unpadded(tree)
    arrays, names = _named(logical), identities(logical)
    sums = checksums(arrays)
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
                name: {
                    "shape": list(x.shape),
                    "dtype": str(x.dtype),
                    "checksum": sums[name],
                    "identity": names[name],
                }
                for name, x in arrays.items()
            },
            "files": described(aside),
            "metadata": metadata,
        }
        _write_manifest(aside / _MANIFEST, content)
        sync_to_disk(aside)
        take_name(aside, target)
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
    source = standing(Path(path).absolute())
    manifest = _read_manifest(source)
    logical = unpadded_like(like)
    targets = _named(logical)
    _check_same(source, manifest["arrays"], targets)
    arrays = _read(source, manifest, targets, verify=verify)
    leaves, treedef = jax.tree.flatten(logical)
    values = [_as_before(arrays[n], x) for n, x in zip(_names(logical), leaves, strict=True)]
    return repadded(treedef.unflatten(values), like)


class RestoreReport(NamedTuple):
    """What `restore_changed` did with each array.

    Attributes:
      kept: path in the tree -> path in the checkpoint.
      new: paths that the checkpoint does not have; they keep the values that they had.
      dropped: paths in the checkpoint that the tree does not have.
    """

    kept: dict[str, str]
    new: tuple[str, ...]
    dropped: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"kept {len(self.kept)}, new {len(self.new)}, dropped {len(self.dropped)}"]
        lines += [f"  new      {name}" for name in self.new]
        lines += [f"  dropped  {name}" for name in self.dropped]
        return "\n".join(lines)


def restore_changed(
    path: str | os.PathLike[str], like: Any, *, verify: bool = True
) -> tuple[Any, RestoreReport]:
    """Reads what a checkpoint and a tree have in common, when the rule has changed in between.

    An array of a state is known by its field, like `ScaleByAdamState.mu`, and the parameter's path, not
    by where in a chain it stands: a transform that was added, removed or moved, or a wrapper, leaves
    the others as they were. Arrays whose shape or dtype has changed count as new.

    Args:
      path: a folder that `save` made.
      like: a tree of arrays; the values of those that the checkpoint lacks are kept.
      verify: compare the arrays' checksums; files are checked in any case.

    Returns:
      A tree like `like`, and a report of what was kept, new and dropped.

    Raises:
      FileNotFoundError: nothing stands at `path`.
      CheckpointError: the checkpoint is damaged, truncated or not one of ours.
      ValueError: a new array has no value in `like`, only a shape.

    >>> path = os.path.join(tempfile.mkdtemp(), "step_1")
    >>> params = {"w": jnp.ones(3)}
    >>> jl.save(path, jl.adam(1e-3).init(params))
    >>> clipped = optax.chain(jl.clip_by_global_norm(1.0), jl.adam(1e-3))
    >>> state, report = jl.restore_changed(path, clipped.init(params))
    >>> print(report)
    kept 3, new 0, dropped 0
    """
    source = standing(Path(path).absolute())
    manifest = _read_manifest(source)
    logical = unpadded_like(like)
    targets, names = _named(logical), identities(logical)
    saved = {x.get("identity", n): n for n, x in manifest["arrays"].items()}
    kept = {}
    for name, x in targets.items():
        old = saved.get(names[name])
        if old is not None and _kind_of(manifest["arrays"][old]) == (tuple(x.shape), str(x.dtype)):
            kept[name] = old
    report = RestoreReport(
        kept,
        new=tuple(n for n in targets if n not in kept),
        dropped=tuple(n for n in manifest["arrays"] if n not in set(kept.values())),
    )
    wanted = {
        old: jax.ShapeDtypeStruct(tuple(x["shape"]), jnp.dtype(x["dtype"]))
        for old, x in manifest["arrays"].items()
    }
    wanted |= {old: targets[name] for name, old in kept.items()}
    arrays = _read(source, manifest, wanted, verify=verify)
    present = dict(zip(_names(logical), jax.tree.leaves(unpadded(like)), strict=True))
    problems = Problems("restore")
    for name in report.new:
        if isinstance(present[name], jax.ShapeDtypeStruct):
            problems.add("the checkpoint has no such array, and none was given", at=name, do="Pass arrays")
    problems.raise_if_any()
    leaves, treedef = jax.tree.flatten(logical)
    values = [
        _as_before(arrays[kept[n]], x) if n in kept else present[n]
        for n, x in zip(_names(logical), leaves, strict=True)
    ]
    return repadded(treedef.unflatten(values), like), report


def _read(source: Path, manifest: dict[str, Any], targets: dict[str, Any], *, verify: bool) -> dict[str, Any]:
    """The arrays of a checkpoint, checked, placed like `targets`."""
    _check_files(source, manifest)
    arrays = _read_arrays(source / _ARRAYS, {n: x for n, x in targets.items() if x.size})
    for name, x in targets.items():
        if not x.size:
            arrays[name] = jnp.zeros(x.shape, x.dtype, device=getattr(x, "sharding", None))
    if verify:
        _check_sums(source, manifest["arrays"], checksums(arrays))
    return arrays


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata that `save` was given.

    Raises:
      FileNotFoundError: nothing stands at `path`.
      CheckpointError: the manifest is missing, damaged or not one of ours.
    """
    return _read_manifest(standing(Path(path).absolute()))["metadata"]


# --- arrays and their names ---------------------------------------------------------------------------


def _named(tree: Any) -> dict[str, Any]:
    """Path -> array; a random key stands as its data."""
    names, leaves = _names(tree), jax.tree.leaves(tree)
    named = {name: _plain(x) for name, x in zip(names, leaves, strict=True)}
    if len(named) != len(names):
        twice = sorted({n for n in names if names.count(n) > 1})
        raise ValueError(message("checkpoint", f"paths are not unique, got {twice!r}"))
    return named


def _names(tree: Any) -> list[str]:
    return [name or "value" for name in leaf_paths(tree)]


def _kind_of(saved: dict[str, Any]) -> tuple[tuple[int, ...], str]:
    return tuple(saved["shape"]), saved["dtype"]


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
        was = _kind_of(saved[name])
        now = (tuple(targets[name].shape), str(targets[name].dtype))
        if was != now:
            problems.add(f"{where} has {was[1]}{list(was[0])}, asked for {now[1]}{list(now[0])}", at=name)
    if problems.found:
        problems.found.append("It belongs to another model or rule.")
    problems.raise_if_any()


# --- contents --------------------------------------------------------------------------------------


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


def _as_json(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
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


def _check_files(source: Path, manifest: dict[str, Any]) -> None:
    # many processes need not read all files: the arrays' checksums find the damage too
    whole = jax.process_count() == 1
    file_problems("restore", source, manifest["files"], contents=whole).raise_if_any(CheckpointError)


# --- several processes --------------------------------------------------------------------------------


def _is_writer() -> bool:
    return jax.process_index() == 0


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
