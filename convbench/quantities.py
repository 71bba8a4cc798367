"""Quantities as people write them ('10 min', '3 %', '4 GiB'), and the validators of suite files built on them.

Each function takes what YAML or the command line gives and returns the plain number, or raises ValueError with a
sentence; pydantic turns that into an error with the key.
"""

from __future__ import annotations

import math
import re
from typing import Any

SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
BYTES = {
    "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
_QUANTITY = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z%]*)\s*")


def seconds(value: Any) -> float:
    """'10 min', '0.2 s', '5 ms' or a number of seconds; more than 0."""
    return _scaled(value, SECONDS, "a time such as 10 min, 0.2 s or 5 ms")


def size_bytes(value: Any) -> int:
    """'4 GiB', '500 MB' or a number of bytes; more than 0."""
    return int(_scaled(value, BYTES, "a size such as 4 GiB or 500 MB"))


def fraction(value: Any) -> float:
    """'3 %' or a number between 0 and 1."""
    meant = "a share such as 3 % or 0.03"
    number = _scaled(value, {"%": 0.01}, meant)
    if number >= 1:
        raise ValueError(f"must be {meant}, below 100 %, not {value!r}")
    return number


def whole(value: Any, least: int = 1) -> int:
    """A whole number of at least `least`; text that holds one is accepted."""
    if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]+\s*", value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"must be a whole number >= {least}, not {value!r}")
    return value


def _scaled(value: Any, units: dict[str, Any], meant: str) -> float:
    """Number times unit; ValueError says what was meant."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
    else:
        match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise ValueError(f"must be {meant}, not {value!r}")
        if match[2] and match[2] not in units:
            raise ValueError(f"must be {meant}, not {value!r}: the units are {', '.join(units)}")
        number = float(match[1]) * (units[match[2]] if match[2] else 1)
    if not 0 < number < math.inf:
        raise ValueError(f"must be {meant}, more than 0, not {value!r}")
    return number
