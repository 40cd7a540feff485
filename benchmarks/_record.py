"""What every saved result says of the run it comes from."""

import datetime
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def about(*packages: str, beside: tuple[str, ...] = ()) -> dict:
    """Date, commit, hardware and versions; those of packages `beside` where they are installed."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent).stdout
    except OSError:  # there is no git
        commit = ""
    found = {name: version(name) for name in packages}
    for name in beside:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit.strip(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), **found},
    }
