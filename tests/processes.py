"""What tests that start several processes of their own share."""

import contextlib
import os
import socket
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATIENCE = 240  # seconds before a process that hangs is killed
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}


def free_port():
    with contextlib.closing(socket.socket()) as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def kill(processes):
    for process in processes:
        process.kill()
        process.wait()
