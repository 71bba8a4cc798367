"""Makes the plug-ins of this folder visible to a new Python process, without installing anything.

A plug-in is found through the metadata of a distribution: a folder `NAME-0.1.dist-info` on the module path.
"""

from __future__ import annotations

import os
from pathlib import Path

HERE = Path(__file__).resolve().parent
EXAMPLE = "example"
#: Names of the misbehaving plug-ins, as `site_with` takes them: segfault_import, hang_run, nan ...
BAD = tuple(sorted(p.stem.removeprefix("bad_") for p in (HERE / "bad").glob("bad_*.py") if p.stem != "bad_common"))


def site_with(folder: Path, *names: str) -> dict[str, str]:
    """Environment additions that make plug-ins visible: "example", or one of BAD.

    The misbehaving plug-in `nan` is entry point `bad_nan`, and its implementation, if it lives to register one,
    `bad_nan_numpy`. Use: `subprocess.run(..., env={**os.environ, **site_with(tmp_path, "nan")})`.
    """
    site = Path(folder) / "site"
    for name in names:
        module = "convbench_example_plugin" if name == EXAMPLE else f"bad_{name}"
        if name != EXAMPLE and name not in BAD:
            raise ValueError(f"no plug-in {name!r}; there are {EXAMPLE}, {', '.join(BAD)}")
        entry = EXAMPLE if name == EXAMPLE else module
        add_distribution(site, module.replace("_", "-"), {entry: module})
    return site_path(site, HERE / "bad", HERE / "convbench_example_plugin")


def add_distribution(site: Path, distribution: str, points: dict[str, str], version: str = "0.1") -> None:
    """Writes the metadata of a distribution with these entry points (name -> module) into `site`."""
    info = Path(site) / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    lines = "".join(f"{name} = {module}\n" for name, module in points.items())
    (info / "entry_points.txt").write_text(f"[convbench.algorithms]\n{lines}")


def site_path(*folders: Path) -> dict[str, str]:
    """PYTHONPATH with these folders before what it holds already."""
    known = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": os.pathsep.join([*map(str, folders), *([known] if known else [])])}
