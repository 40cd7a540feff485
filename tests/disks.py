"""Small file systems for tests, where the system lets one mount them."""

import contextlib
import subprocess

import pytest


@contextlib.contextmanager
def mounted(folder, size, *, read_only=False):
    """A tmpfs of `size` bytes at a new folder."""
    folder.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no mounting here: {error}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def remount(folder, options):
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
