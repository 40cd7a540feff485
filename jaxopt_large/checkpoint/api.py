"""Checkpoints that say so when they are damaged.

A checkpoint is a folder: the arrays as orbax writes them, and a manifest with each array's path,
shape, dtype and the checksums of its parts, and each file's size and CRC. It is written aside and takes its
name in one rename, so that a folder of that name is always whole. Arrays are written in their logical shape:
what a checkpoint holds does not depend on the devices that held it.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp

from .._errors import Problems, message
from .._nodes import StateNode, answers
from .._paths import path_string
from .._processes import on_any
from ._checksums import checksums, on_host
from ._files import local, standing
from ._identity import identities
from ._leaves import Form, form, from_disk, named_leaves, placed, read_arrays, to_disk
from ._leaves import write_arrays as _write_arrays
from ._logical import repadded, unpadded, unpadded_like
from ._manifest import CheckpointError, as_json, check_files, read_manifest
from ._matching import RestoreReport, check_same, compared
from ._parts import Part, changed, covers, sealed
from ._saving import Saving, begin, copied, parted, wait_for, wait_for_last
from ._writing import ARRAYS, Writing


@overload
def save(
    path: str | os.PathLike[str],
    tree: Any,
    *,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    wait: Literal[True] = True,
    host_bytes: int | None = None,
) -> None: ...


@overload
def save(
    path: str | os.PathLike[str],
    tree: Any,
    *,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    wait: Literal[False],
    host_bytes: int | None = None,
) -> Saving: ...


def save(
    path: str | os.PathLike[str],
    tree: Any,
    *,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    wait: bool = True,
    host_bytes: int | None = None,
) -> Saving | None:
    """Writes a tree of arrays; either all of it is there afterwards, or nothing.

    States under `zero` (in jit) are written without padding, so that they can be read on any mesh.
    With `overwrite` it is the old checkpoint or the new one that is there, whenever the process dies.

    With `wait=False` it returns when the arrays have been copied to the host's memory: they may be donated
    then, and the rest goes on beside the training step. One checkpoint is written at a time: another `save`
    waits for it first, and so does the end of the program; whoever waits first is told if it failed.

    Args:
      path: the folder to make.
      tree: any tree of arrays, numbers and typed random keys.
      metadata: anything JSON holds, given back by `read_metadata`; keys become strings.
      overwrite: replace what stands at `path`.
      wait: return when it is whole and on the disk.
      host_bytes: with `wait=False`, how much of each process's memory copies may take; what does not fit is
        written before this returns. All of it by default.

    Returns:
      With `wait=False` a `Saving`: its `wait()` returns when the checkpoint is whole, or raises, and `done`
      says whether it is over.

    Raises:
      FileExistsError: something stands at `path` already, and it may not be overwritten.
      CheckpointError: it cannot be written: the disk is full, or may not be written. What stood at `path`
        stands, nothing else is left. It is an `OSError` too, with the system's `errno`. Or one that was
        begun before could not be written.
      TypeError: a leaf or the metadata cannot be saved; nothing is written.
      ValueError: host_bytes < 0, or a path like gs://...
      ModuleNotFoundError: orbax-checkpoint is missing; install jaxopt_large[train].

    >>> path = os.path.join(tempfile.mkdtemp(), "step_1")
    >>> jl.save(path, {"w": jnp.arange(3.0)})
    >>> jl.restore(path, {"w": jnp.zeros(3)})["w"].tolist()
    [0.0, 1.0, 2.0]
    >>> saving = jl.save(os.path.join(tempfile.mkdtemp(), "step_2"), {"w": jnp.arange(3.0)}, wait=False)
    >>> saving.wait()
    """
    if host_bytes is not None and (type(host_bytes) is not int or host_bytes < 0):
        wrong = f"host_bytes is out of range, got {host_bytes!r}"
        raise ValueError(message("save", wrong, allowed="an integer >= 0"))
    wait_for_last()
    target = local("save", path)
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
    what = {name: {"identity": known[name].name, "keys": known[name].keys} for name in leaves}
    entries = {n: {**form(x).entry(), **what[n]} for n, x in leaves.items()}
    size = sum(x.nbytes for x in arrays.values())
    writing = Writing(target, entries, metadata, size, _write_arrays)
    writing.begin()
    if wait:
        writing.add(arrays)
        writing.finish()
        return None
    now, later = parted(arrays, host_bytes)
    if now:
        writing.add(now, first=True)
    copies = copied(later)

    def rest() -> None:
        writing.add(copies)
        writing.finish()

    return begin(str(target), rest)


def restore(path: str | os.PathLike[str], like: Any, *, verify: bool = True) -> Any:
    """Reads a tree of arrays back, each to where `like` has it.

    Args:
      path: a folder that `save` made.
      like: a tree of the structure, shapes and dtypes saved; arrays, or `jax.ShapeDtypeStruct`s with a
        sharding, as `abstract_state` gives them. NumPy arrays and numbers come back as such. Their
        values are not used.
      verify: compare the arrays' checksums; files' sizes, and what describes arrays, are checked in any case.

    Returns:
      A tree like `like`, on its devices.

    Raises:
      FileNotFoundError: nothing stands at `path`.
      CheckpointError: the checkpoint is damaged, truncated or not one of ours.
      ValueError: it holds other arrays than `like`; all differences are named. A state of `zero` or
        `offload` in `like` does not say where it belongs.
    """
    source = standing(_there("restore", path))
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
      verify: compare the arrays' checksums; files' sizes, and what describes arrays, are checked in any case.

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
    source = standing(_there("restore_changed", path))
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
    manifest, logical = read_manifest(standing(_there("restore_changed", path))), unpadded_like(like)
    return compared(manifest["arrays"], logical, named_leaves("restore_changed", logical), {})


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata that `save` was given.

    Raises:
      FileNotFoundError: nothing stands at `path`.
      CheckpointError: the manifest is missing, damaged or not one of ours.
    """
    return read_manifest(standing(_there("restore", path)))["metadata"]


def _there(who: str, path: str | os.PathLike[str]) -> Path:
    """A checkpoint's folder; one that is being written is whole then."""
    found = local(who, path)
    wait_for(str(found))
    return found


def _target(x: Any) -> jax.ShapeDtypeStruct:
    array = jax.random.key_data(x) if isinstance(x, jax.Array) and form(x).dtype.startswith("key") else x
    return form(x).target(getattr(array, "sharding", None))


def _read(source: Path, manifest: dict[str, Any], targets: dict[str, Any], *, verify: bool) -> dict[str, Any]:
    """The arrays of a checkpoint, checked, placed like `targets`."""
    check_files(source, manifest)
    entries = manifest["arrays"]
    folders: dict[str, dict[str, Any]] = {}
    for name, x in targets.items():
        if x.size:
            folders.setdefault(entries[name].get("folder", ARRAYS), {})[name] = x
    arrays: dict[str, Any] = {}
    failure = None
    try:
        for folder, wanted in folders.items():
            arrays |= read_arrays(source / folder, wanted)
    except CheckpointError as error:
        failure = error
    if on_any(failure is not None):
        if failure is not None:
            check_files(source, manifest, arrays=True)  # which of them it is
            raise failure
        text = f"checkpoint {str(source)!r} is damaged, as another process has found"
        raise CheckpointError(message("restore", text, do="Restore an earlier one"))
    for name, x in targets.items():
        if not x.size:
            arrays[name] = jnp.zeros(x.shape, x.dtype, device=x.sharding)
    if verify:
        _verify(source, manifest, arrays)
    return placed(arrays, targets)


def _verify(source: Path, manifest: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Raises for arrays that are not as they were."""
    entries, problems = manifest["arrays"], Problems("restore")
    parts = {n: [Part.of_entry(e) for e in entries[n]["parts"]] for n in arrays if "parts" in entries[n]}
    wrong = {name: str(list(box)) for name, box in changed({n: arrays[n] for n in parts}, parts).items()}
    found = {n: sealed(entries[n]["parts"]) for n, some in parts.items() if covers(arrays[n].shape, some)}
    found |= checksums({n: x for n, x in arrays.items() if n not in parts})  # of version 2 and before
    for name in arrays:
        if found.get(name) != entries[name].get("checksum"):
            wrong.setdefault(name, str(found.get(name, "not all of it")))
    for name, got in wrong.items():
        text = f"checkpoint {str(source)!r} is damaged, its checksum does not fit, got {got}"
        problems.add(text, at=name, do="Restore an earlier one")
    if on_any(bool(wrong)):
        if jax.process_count() == 1:
            check_files(source, manifest, arrays=True)  # names the file, if it is one
        problems.raise_if_any(CheckpointError)
        text = f"checkpoint {str(source)!r} is damaged, as another process has found"
        raise CheckpointError(message("restore", text, do="Restore an earlier one"))


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
