"""Takes a name that is taken: that of the row in CONVBENCH_BAD_NAME."""

import os

import bad_common

from convbench.registry import register


@register
class First(bad_common.Right):
    """A row of its own, registered before the collision."""

    name = "bad_first_numpy"


@register
class Second(bad_common.Right):
    """The same name as another implementation's."""

    name = os.environ["CONVBENCH_BAD_NAME"]
