"""Correct, but prints on both standard descriptors while it is imported, as libraries do."""

import os

import bad_common

from convbench.registry import register

print("chatter through sys.stdout")
os.write(1, b'{"implementations": "chatter on descriptor 1"}\n')


@register
class Talker(bad_common.Right):
    """Correct and noisy."""

    name = "bad_chatter_numpy"
