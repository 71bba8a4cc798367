"""Where machine code is kept between processes: object files and cubins of kernels, Numba's files of the loops.

The user's cache folder ($XDG_CACHE_HOME or ~/.cache, then convbench/). Where that cannot be written, a folder of
this user's own in the system's temporary directory, so that a read-only install without a home still compiles
once only; where even that fails, one for this process alone.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import importlib.metadata
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

#: Machine code that no process has asked for in so long is removed.
UNUSED_DAYS = 30


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
    folder = code_dir() / f"loops-{digest.hexdigest()[:16]}"
    with contextlib.suppress(OSError):  # a disk that is full or read-only by now
        folder.mkdir(mode=0o700, exist_ok=True)
        os.utime(folder)  # in use
    remove_unused()
    return folder


def forget_loop(prefix: str) -> None:
    """Removes Numba's files whose names begin so; what cannot be removed stays."""
    for path in loops_dir().rglob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            path.unlink()


def mark_used(path: Path) -> None:
    """Notes that a file of the cache was asked for today."""
    with contextlib.suppress(OSError):
        if time.time() - path.stat().st_mtime > 86400:
            os.utime(path)


def remove_unused() -> None:
    """Removes loops of older sources and kernels that nobody has used for UNUSED_DAYS days."""
    oldest = time.time() - UNUSED_DAYS * 86400
    with contextlib.suppress(OSError):
        for path in [*code_dir().glob("loops-*"), *code_dir().glob("kernels/*.o*"), *code_dir().glob("cubins/*")]:
            if path.lstat().st_mtime >= oldest:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


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
