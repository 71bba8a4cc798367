"""Registers a row, then raises while it is imported."""

import bad_common

from convbench.registry import register


@register
class Bad(bad_common.Right):
    """Half registered when the import fails."""

    name = "bad_raise_import_numpy"


raise RuntimeError("this plug-in needs\na newer moon")
