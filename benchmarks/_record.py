"""What every saved result says of the run it comes from."""

import datetime
import os
import platform
import subprocess
from importlib.metadata import version


def about(*packages: str) -> dict:
    """Date, commit, hardware and versions."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }
