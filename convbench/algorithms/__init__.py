"""The built-in algorithms, one idea a file; modules whose name begins with `_` are shared by several.

No list of them exists: the catalog imports what it finds here. The package can be called, because
`convbench.algorithms()` is the public way to list what is registered.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    """A package that lists the registered implementations when it is called."""

    def __call__(self) -> list[Any]:
        """All registered implementations, sorted by name; see `convbench.engine.algorithms`."""
        # By name, at the call: algorithms know nothing of the engine that runs them.
        listed: list[Any] = importlib.import_module("convbench.engine").algorithms()
        return listed


sys.modules[__name__].__class__ = _CallablePackage
