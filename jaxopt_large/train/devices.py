"""The devices of a run: processes, simulated ones on CPU, the mesh."""

import contextlib

import jax
from jax.sharding import Mesh

from .._errors import message
from ..config import Config, mesh_of
from ._errors import RunError


def prepare(config: Config) -> Mesh:
    """Joins the other processes, simulates CPU devices where needed, and makes the mesh.

    Must run before anything else uses a device.

    Raises:
      RunError: there are fewer devices than the mesh has places.
    """
    if config.distributed == "auto":
        jax.distributed.initialize()  # Slurm, GKE and TPU pods are detected by JAX
    wanted = config.placement.devices
    if config.distributed == "off":
        with contextlib.suppress(RuntimeError):  # devices are in use already: what is there must do
            jax.config.update("jax_num_cpu_devices", wanted)
    mesh = mesh_of(config.placement)
    if not isinstance(mesh, Mesh):
        devices = jax.devices()
        raise RunError(
            message(
                "train",
                f"the mesh {dict(config.placement.mesh)} needs {wanted} devices, got {len(devices)} "
                f"({devices[0].platform})",
                do="Change placement.mesh; to try it on CPU set JAX_PLATFORMS=cpu",
            )
        )
    return mesh


def describe(mesh: Mesh) -> str:
    """ "8 devices (data=8), simulated on CPU"."""
    device = mesh.devices.flat[0]
    axes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
    plural = "s" if mesh.size > 1 else ""
    kind = "CPU" if device.platform == "cpu" else device.device_kind
    simulated = "simulated on " if device.platform == "cpu" and mesh.size > 1 else ""
    return f"{mesh.size} device{plural} ({axes}), {simulated}{kind}"
