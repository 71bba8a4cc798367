"""A plug-in with rows for the fake GPU; its kernels need no compiler, ceilings are measured on small things.

Timing looks at simulated time; kernels take a millisecond of that, so that few of them fill a sample.
"""

import types

import cupy

from convbench.devices import cuda, cuda_peaks, cuda_program, cuda_timing
from convbench.registry import register
from tests import fake_rows

cuda_program.compile_for = lambda launch, gpu: types.SimpleNamespace(path=launch.file)
cuda_peaks.SIZE, cuda_peaks.COPY_BYTES, cuda.FLUSH_BYTES = 64, 1 << 16, 1 << 16
cuda_timing.time = cupy.fake.time
cupy.fake.kernel_ns = 1_000_000
fake_rows.add_kernels(cupy.fake)


class Baseline(fake_rows.FakeDirect):
    """A vendor's row."""

    name = "vendor_test_cuda"
    vendor = True


for row in (fake_rows.FakeDirect, fake_rows.FakeWorkspace, fake_rows.OtherStream, fake_rows.Breaks, Baseline):
    register(row)
