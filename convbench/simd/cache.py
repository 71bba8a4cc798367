"""Where machine code is kept between processes: object files of kernels, Numba's files of the loops around them.

The user's cache folder ($XDG_CACHE_HOME or ~/.cache, then convbench/). Where that cannot be written, a folder of
this user's own in the system's temporary directory, so that a read-only install without a home still compiles
once only; where even that fails, one for this process alone.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import importlib.metadata
import os
import shutil
import stat
import tempfile
from pathlib import Path


def user_cache_dir() -> Path:
    """$XDG_CACHE_HOME/convbench or ~/.cache/convbench; not created here, perhaps not writable."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path(os.path.expanduser("~")) / ".cache") / "convbench"


@functools.cache
def code_dir() -> Path:
    """A writable folder for machine code, created if need be."""
    temporary = Path(tempfile.gettempdir()) / f"convbench-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
    for folder in (user_cache_dir(), temporary):
        if _is_own_and_writable(folder):
            return folder
    folder = Path(tempfile.mkdtemp(prefix="convbench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def loops_dir() -> Path:
    """Folder for Numba's files. Its name holds the hash of every source file of the package that shapes the code.

    Numba looks at the time stamp of the one file that holds a function, not at what that function calls.
    """
    digest = hashlib.sha256(importlib.metadata.version("numba").encode())
    package = Path(__file__).resolve().parent
    for path in sorted([*package.rglob("*.py"), *(package.parent / "algorithms").rglob("*.py")]):
        digest.update(path.read_bytes())
    return code_dir() / f"loops-{digest.hexdigest()[:16]}"


def _is_own_and_writable(folder: Path) -> bool:
    """Creates the folder; True if it belongs to this user alone and a file can be made in it.

    Machine code is run from here: a folder that somebody else owns or may write to is not trusted.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.lstat()
        if not stat.S_ISDIR(facts.st_mode):
            return False
        if hasattr(os, "getuid") and (facts.st_uid != os.getuid() or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
            return False
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
