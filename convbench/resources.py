"""Finds what travels with the package, built-in suites and GPU kernels, in a checkout or in an installed wheel.

Standard library only.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from convbench.errors import OutputError, SuiteError
from convbench.nearest import nearest

PACKAGE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """The data folder `name`: convbench/_<name> in a wheel, <name> beside the package in a checkout.

    Raises OutputError where the installation lacks it.
    """
    inside, beside = PACKAGE / f"_{name}", PACKAGE.parent / name
    if inside.is_dir():
        return inside
    # A folder of that name in site-packages is somebody else's: a checkout has a pyproject.toml.
    if beside.is_dir() and (PACKAGE.parent / "pyproject.toml").is_file():
        return beside
    raise OutputError(f"convbench's {name} are neither in {inside} nor in {beside}: install convbench again")


def suite_names() -> list[str]:
    """Names of the built-in suites, sorted."""
    return sorted(path.stem for path in folder("suites").glob("*.yaml"))


def find_suite(name_or_path: str | Path) -> Path:
    """The file of a built-in suite, or the path given. Raises SuiteError with the nearest name."""
    text = str(name_or_path)
    path = Path(text)
    if _is_file(path):
        return path
    names = suite_names()
    if text in names:
        return folder("suites") / f"{text}.yaml"
    hint = nearest(path.stem, names)
    built_in = f"the built-in suites are {', '.join(names)}"
    if len(text) < 1000 and path.is_dir():
        raise SuiteError(f"{text} is a folder, not a suite file; {built_in}{hint}")
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise SuiteError(f"there is no suite file {text}; {built_in}{hint}")
    raise SuiteError(f"there is no suite {text!r}; {built_in}; a path to a YAML file is fine too{hint}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a text too long for a file's name
        return False


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file. Raises OutputError where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror}") from error
