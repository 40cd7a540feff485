"""Checkpoints that say so when they are damaged.

A checkpoint is a folder: the arrays as orbax writes them, and a manifest with each array's path,
shape, dtype and checksum, and each file's size and CRC. It is written aside and takes its name in one
rename, so that a folder of that name is always whole. Arrays are written in their logical shape: nothing in a
checkpoint depends on the devices that held it, and the checksum of a sharded array is that of the array.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from .._errors import Problems, message
from .._nodes import StateNode, answers
from .._paths import path_string
from .._processes import is_writer, on_any
from .._writing import not_written, number_of
from ._checksums import checksums, on_host
from ._files import standing, sync_to_disk, take_name
from ._identity import identities
from ._leaves import Form, form, from_disk, named_leaves, placed, read_arrays, to_disk
from ._leaves import write_arrays as _write_arrays
from ._logical import repadded, unpadded, unpadded_like
from ._manifest import CheckpointError, NotWrittenError, as_json, check_files, read_manifest, write_manifest
from ._matching import RestoreReport, check_same, compared

_ARRAYS = "arrays"
_FILES, _ENTRIES = 64 * 2**10, 3 * 2**9  # bytes at most beside the arrays', of each checkpoint and array


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
      CheckpointError: it cannot be written: the disk is full, or may not be written. What stood at `path`
        stands, nothing else is left. It is an `OSError` too, with the system's `errno`.
      TypeError: a leaf or the metadata cannot be saved; nothing is written.
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
    metadata = as_json(metadata)
    logical = unpadded(tree)
    leaves, known = named_leaves("save", logical), identities(logical)
    arrays = {name: to_disk(x) for name, x in leaves.items()}
    if jax.process_count() == 1:  # of several, orbax refuses what one of them has for itself
        arrays = on_host(arrays)
    sums = checksums(arrays)
    what = {name: {"identity": known[name].name, "keys": known[name].keys} for name in leaves}
    entries = {n: {**form(x).entry(), "checksum": sums[n], **what[n]} for n, x in leaves.items()}
    aside = target.with_name(f".{target.name}.part")
    filled = {name: x for name, x in arrays.items() if x.size}  # orbax takes no empty arrays
    failure = None
    for stage in (
        lambda: is_writer() and _make_anew(aside),
        lambda: filled and _write_arrays(aside / _ARRAYS, filled),
        lambda: is_writer() and _finish(aside, target, entries, metadata),
    ):
        try:
            stage()
        except Exception as error:  # tensorstore and orbax raise many kinds when the disk is full
            failure = error
        if on_any(failure is not None):
            if is_writer():
                shutil.rmtree(aside, ignore_errors=True)
            raise _not_written(target, failure, filled)


def restore(path: str | os.PathLike[str], like: Any, *, verify: bool = True) -> Any:
    """Reads a tree of arrays back, each to where `like` has it.

    Args:
      path: a folder that `save` made.
      like: a tree of the structure, shapes and dtypes saved; arrays, or `jax.ShapeDtypeStruct`s with a
        sharding, as `abstract_state` gives them. NumPy arrays and numbers come back as such. Their
        values are not used.
      verify: compare the arrays' checksums; files are checked in any case.

    Returns:
      A tree like `like`, on its devices.

    Raises:
      FileNotFoundError: nothing stands at `path`.
      CheckpointError: the checkpoint is damaged, truncated or not one of ours.
      ValueError: it holds other arrays than `like`; all differences are named. A state of `zero` or
        `offload` in `like` does not say where it belongs.
    """
    source = standing(Path(path).absolute())
    manifest = read_manifest(source)
    _check_placed("restore", like)
    logical = unpadded_like(like)
    leaves = named_leaves("restore", logical)
    check_same(str(source), manifest["arrays"], leaves)
    arrays = _read(source, manifest, {name: _target(x) for name, x in leaves.items()}, verify=verify)
    values = [from_disk(arrays[name], x) for name, x in leaves.items()]
    return repadded(jax.tree.structure(logical).unflatten(values), like)


def restore_changed(
    path: str | os.PathLike[str],
    like: Any,
    *,
    renamed: Mapping[str, str] | None = None,
    verify: bool = True,
) -> tuple[Any, RestoreReport]:
    """Reads what a checkpoint and a tree have in common, when the rule has changed in between.

    An array of a state is known by its field, like `ScaleByAdamState.mu`, and the parameter's path, not
    by where in a chain it stands: a transform that was added, removed or moved, or a wrapper, leaves
    the others as they were. Arrays whose shape or dtype has changed count as new. Of several arrays that
    are the same in this sense, those below the same dictionary keys belong together, and the others in
    their order; if one side has more of them, none is kept, and the report lists them as ambiguous.

    Args:
      path: a folder that `save` made.
      like: a tree of arrays; the values of those that the checkpoint lacks are kept.
      renamed: path in the tree -> path in the checkpoint, of an array or of all that is below: what
        cannot be told otherwise. Several paths may have one origin.
      verify: compare the arrays' checksums; files are checked in any case.

    Returns:
      A tree like `like`, and a report of what was kept, new, dropped and ambiguous.

    Raises:
      FileNotFoundError: nothing stands at `path`.
      CheckpointError: the checkpoint is damaged, truncated or not one of ours.
      ValueError: a new array has no value in `like`, only a shape; `renamed` names what is not there, or
        arrays that do not fit; a state of `zero` or `offload` does not say where it belongs.

    >>> path = os.path.join(tempfile.mkdtemp(), "step_1")
    >>> params = {"w": jnp.ones(3)}
    >>> jl.save(path, jl.adam(1e-3).init(params))
    >>> clipped = optax.chain(jl.clip_by_global_norm(1.0), jl.adam(1e-3))
    >>> state, report = jl.restore_changed(path, clipped.init(params))
    >>> print(report)
    kept 3, new 0, dropped 0
    """
    source = standing(Path(path).absolute())
    manifest = read_manifest(source)
    _check_placed("restore_changed", like)
    logical = unpadded_like(like)
    leaves = named_leaves("restore_changed", logical)
    report = compared(manifest["arrays"], logical, leaves, renamed or {})
    present = _present(like, leaves, report.new)
    targets = {old: Form.of_entry(x).target() for old, x in manifest["arrays"].items()}
    first: dict[str, str] = {}
    for name, old in report.kept.items():
        first.setdefault(old, name)
    targets |= {old: _target(leaves[name]) for old, name in first.items()}
    arrays = _read(source, manifest, targets, verify=verify)
    values = []
    for name, x in leaves.items():
        old = report.kept.get(name)
        if old is None:
            values.append(present[name])
            continue
        array = arrays[old]
        if first[old] != name:  # a buffer of its own, where this leaf belongs
            array = jnp.copy(jax.device_put(array, _target(x).sharding))
        values.append(from_disk(array, x))
    return repadded(jax.tree.structure(logical).unflatten(values), like), report


def difference(path: str | os.PathLike[str], like: Any) -> RestoreReport:
    """What `restore_changed` would do; no array is read."""
    manifest, logical = read_manifest(standing(Path(path).absolute())), unpadded_like(like)
    return compared(manifest["arrays"], logical, named_leaves("restore_changed", logical), {})


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata that `save` was given.

    Raises:
      FileNotFoundError: nothing stands at `path`.
      CheckpointError: the manifest is missing, damaged or not one of ours.
    """
    return read_manifest(standing(Path(path).absolute()))["metadata"]


def _target(x: Any) -> jax.ShapeDtypeStruct:
    array = jax.random.key_data(x) if isinstance(x, jax.Array) and form(x).dtype.startswith("key") else x
    return form(x).target(getattr(array, "sharding", None))


def _read(source: Path, manifest: dict[str, Any], targets: dict[str, Any], *, verify: bool) -> dict[str, Any]:
    """The arrays of a checkpoint, checked, placed like `targets`."""
    check_files(source, manifest)
    arrays = read_arrays(source / _ARRAYS, {n: x for n, x in targets.items() if x.size})
    for name, x in targets.items():
        if not x.size:
            arrays[name] = jnp.zeros(x.shape, x.dtype, device=x.sharding)
    problems = Problems("restore")
    for name, checksum in (checksums(arrays) if verify else {}).items():
        if checksum != manifest["arrays"][name]["checksum"]:
            problems.add(
                f"checkpoint {str(source)!r} is damaged, its checksum does not fit, got {checksum}",
                at=name,
                do="Restore an earlier one",
            )
    problems.raise_if_any(CheckpointError)
    return placed(arrays, targets)


def _present(like: Any, leaves: dict[str, Any], new: tuple[str, ...]) -> dict[str, Any]:
    """The values that `like` has for what the checkpoint lacks."""
    problems = Problems("restore")
    given, treedef = jax.tree.flatten(like)
    shapes = [isinstance(x, jax.ShapeDtypeStruct) for x in given]
    for name, is_shape in zip(leaves, shapes, strict=True):
        if is_shape and name in new:
            problems.add("the checkpoint has no such array, and none was given", at=name, do="Pass arrays")
    problems.raise_if_any()
    if not new:
        return {}
    # a shape stands without padding already, and stays as it is
    whole = [y if is_shape else x for x, y, is_shape in zip(given, leaves.values(), shapes, strict=True)]
    return dict(zip(leaves, jax.tree.leaves(unpadded(treedef.unflatten(whole))), strict=True))


def _check_placed(who: str, like: Any) -> None:
    """Raises for planned states of `zero` and `offload` that do not say where they belong."""
    problems = Problems(who)

    is_placed = answers(StateNode.places)
    for path, node in jax.tree_util.tree_flatten_with_path(like, is_leaf=is_placed)[0]:
        bare = [x for x in jax.tree.leaves(node) if isinstance(x, jax.ShapeDtypeStruct) and not x.sharding]
        if is_placed(node) and bare:
            problems.add(
                f"{len(bare)} leaves of a {type(node).__name__} are shapes without a sharding",
                at=path_string(path),
                do="Pass abstract_state(rule, params)",
            )
    problems.raise_if_any()


def _make_anew(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _finish(aside: Path, target: Path, entries: dict[str, Any], metadata: dict[str, Any]) -> None:
    write_manifest(aside, entries, metadata)
    sync_to_disk(aside)
    take_name(aside, target)


def _not_written(target: Path, failure: Exception | None, arrays: dict[str, Any]) -> NotWrittenError:
    if failure is None:
        wrong = f"{str(target)!r} could not be written, another process has failed to write its part"
        return NotWrittenError(message("save", wrong))
    needed = sum(x.nbytes for x in arrays.values()) + _FILES + len(arrays) * _ENTRIES
    error = NotWrittenError(not_written("save", target, failure, needed=needed))
    error.errno = number_of(failure)
    if error.errno is None:  # else the message says all, and thousands of lines of threads' tracebacks less
        error.__cause__ = failure
    return error
