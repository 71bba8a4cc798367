"""In place of CuPy in child processes: the fake GPU of tests/fake_cuda.py. FAKE_GPU=none: no driver."""

import os
import sys

from tests.fake_cuda import module

_missing = os.environ.get("FAKE_GPU") == "none"
sys.modules[__name__] = module(available=not _missing, driver=0 if _missing else 13020)
