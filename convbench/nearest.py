"""What a mistyped word was probably meant to be. Standard library only."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: object, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the known word most like `word`, or nothing."""
    close = difflib.get_close_matches(str(word)[:200], list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
