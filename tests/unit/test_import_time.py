"""`import convbench` costs nothing: no array library is loaded, and the names are there when they are asked for."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import convbench

HEAVY = ("numpy", "scipy", "numba", "cupy", "pyfftw", "torch", "pandas", "matplotlib", "pydantic", "typer", "rich")
LIGHT_MODULES = (
    "convbench", "convbench.catalog", "convbench.choices", "convbench.environment", "convbench.errors",
    "convbench.problem", "convbench.probe", "convbench.registry", "convbench.algorithms",
)  # fmt: skip


def modules_after(code):
    program = (
        f"import sys, json; sys.path[:0] = {[p for p in sys.path if p]!r}; {code}; "
        "print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_loads_no_array_library(module):
    assert not modules_after(f"import {module}").intersection(HEAVY)


def test_the_check_sees_what_is_loaded():
    assert "numpy" in modules_after("import convbench; convbench.conv2d")


def test_facts_about_the_machine_load_no_array_library():
    assert not modules_after("from convbench import environment; environment.collect()").intersection(HEAVY)


@pytest.mark.parametrize("name", convbench.__all__)
def test_every_public_name_is_there(name):
    assert getattr(convbench, name) is not None
    assert name in dir(convbench)


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'convolve'"):
        convbench.convolve  # noqa: B018


def test_version_is_that_of_the_package_metadata():
    project = tomllib.loads((Path(convbench.__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert convbench.__version__ == project["version"]
