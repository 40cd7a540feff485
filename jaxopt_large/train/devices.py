"""The devices of a run: processes, simulated ones on CPU, the mesh; and what cannot run on any."""

import contextlib
import math
import os

import jax
from jax.sharding import Mesh

from .._errors import message
from .._tables import size
from .._types import Params
from ..config import Config, mesh_of, parts_of
from ..models import Model
from ._errors import RunError

_SIMULATED = 256  # devices of one CPU: more take minutes to compile for
_PLAN = "to plan it, print(jl.explain(jl.build(config), params)), as the README does under Configurations"


_OF_FILES = {"text": "text files", "tokens": ".npy or .bin files"}  # kinds of data -> what they are read from


def check_trains(config: Config, model: Model) -> None:
    """Raises for a configuration that describes no training: its model or its data are only shapes.

    Raises:
      RunError: there is no forward pass, or no data.
    """
    missing, do = [], "To see a run: jaxopt-large train configs/stdlib_gpt.yaml"
    if model.loss is None:
        missing.append(f"model.kind {config.model.kind!r} has no forward pass")
    for where, part in parts_of(config.data).items():
        if part.kind in _OF_FILES and part.path is None:
            missing.append(f"{where}.path is not set")
            if model.loss is not None:
                do = f"To train it: --set {where}.path=FOLDER, with {_OF_FILES[part.kind]} in it. {do}"
    if missing:
        if config.placement.devices > _SIMULATED:
            missing.append(f"its mesh has {config.placement.devices:,} devices")
        wrong = f"{config.name!r} is for planning only as it stands: {', '.join(missing)}"
        raise RunError(message("train", wrong, do=f"{do}; {_PLAN}"))


def check_fits(params: Params) -> None:
    """Raises for parameters that this machine's memory cannot hold, before it is asked to.

    Raises:
      RunError: on CPU, they alone take more than there is.
    """
    if jax.default_backend() != "cpu" or jax.process_count() > 1:
        return  # accelerators refuse what they do not have
    needed = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(params))
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        wrong = f"the parameters take {size(needed)}, and this machine's memory is {size(there)}"
        raise RunError(message("train", wrong, do=f"Take a smaller model or more machines; {_PLAN}"))


def prepare(config: Config) -> Mesh:
    """Joins the other processes, simulates CPU devices where needed, and makes the mesh.

    Must run before anything else uses a device.

    Raises:
      RunError: there are no other processes, or fewer devices than the mesh has places.
    """
    if config.distributed == "auto" and not jax.distributed.is_initialized():
        _join()
    wanted = config.placement.devices
    if config.distributed == "off" and wanted <= _SIMULATED:
        with contextlib.suppress(RuntimeError):  # devices are in use already: what is there must do
            jax.config.update("jax_num_cpu_devices", wanted)
    mesh = mesh_of(config.placement)
    if not isinstance(mesh, Mesh):
        devices = jax.devices()
        got = f"got {len(devices)} ({devices[0].platform})"
        simulate = f"up to {_SIMULATED} can be simulated on CPU with JAX_PLATFORMS=cpu"
        raise RunError(
            message(
                "train",
                f"the mesh {dict(config.placement.mesh)} needs {wanted:,} devices, {got}",
                do=f"Change placement.mesh; {simulate}; {_PLAN}",
            )
        )
    used = {device.process_index for device in mesh.devices.flat}
    if len(used) < jax.process_count():
        few = f"{len(used)} of {jax.process_count()} processes"
        wrong = f"the mesh {dict(config.placement.mesh)} has devices of {few} only"
        raise RunError(message("train", wrong, do="Start fewer processes, or change placement.mesh"))
    return mesh


def _join() -> None:
    """Joins the other processes, where JAX finds them: on Slurm, GKE and TPU pods."""
    try:
        jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise RunError(
            message(
                "train",
                f"distributed: auto found no other processes ({reason})",
                allowed="Slurm, GKE, MPI and TPU pods are detected",
                do="Start it there, or run in one process with --set distributed=off",
            )
        ) from error


def describe(mesh: Mesh) -> str:
    """ "8 devices (data=8), simulated on CPU"."""
    device = mesh.devices.flat[0]
    axes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
    plural = "s" if mesh.size > 1 else ""
    kind = "CPU" if device.platform == "cpu" else device.device_kind
    simulated = "simulated on " if device.platform == "cpu" and mesh.size > 1 else ""
    return f"{mesh.size} device{plural} ({axes}), {simulated}{kind}"
