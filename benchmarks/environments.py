"""The environments of the peers: made when they are first asked for, kept for the next time, away from ours."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Final

PEERS: Final = ("arcticdb", "redis", "polars>=2.1", "pyarrow>=26", "pandas")
POLICIES: Final = ("libcachesim==0.3.5", "cachetools==8.0.0", "theine==2.0.0", "moka-py==0.5.0", "numpy>=2.0")
_COMPLETE: Final = "complete"


def default_folder() -> Path:
    """Return where the environment is kept unless it is said: in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fletching-benchmarks"


def peers_python(folder: Path | None = None, name: str = "peers", packages: Sequence[str] = PEERS) -> Path:
    """Return the interpreter of the environment *name* under *folder*, which is made where it is not there whole."""
    home = (folder or default_folder()) / f"{name}-{sys.version_info.major}.{sys.version_info.minor}"
    python = home / "bin" / "python"
    if not (home / _COMPLETE).exists():
        venv.create(home, with_pip=True, clear=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": ""})
        (home / _COMPLETE).touch()
    return python
