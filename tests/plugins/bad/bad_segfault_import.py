"""Crashes while it is imported."""

import bad_common

bad_common.segfault()
