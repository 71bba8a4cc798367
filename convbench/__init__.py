"""convbench: which convolution algorithm is fastest for this layer, on this machine, at this precision, in this pass.

`import convbench` costs nothing: names are reached lazily (PEP 562), so no array library is loaded before one is
needed, and a worker can set its thread counts first. The public library is `engine.py`; the contract for
algorithms is `registry.py`.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

#: Public name -> the module that defines it.
_LAZY = {
    "conv2d": "convbench.engine",
    "conv2d_backward_data": "convbench.engine",
    "conv2d_backward_weights": "convbench.engine",
    "plan": "convbench.engine",
    "choose": "convbench.engine",
    "Choice": "convbench.engine",
    "InferencePlan": "convbench.engine",
    "clear_cache": "convbench.engine",
    "Affine": "convbench.quantize",
    "FixedPoint": "convbench.quantize",
    "choose_affine": "convbench.quantize",
    "conv2d_quantized": "convbench.quantize",
    "dequantize": "convbench.quantize",
    "quantize_int8": "convbench.quantize",
    "aligned_empty": "convbench.devices.cpu",
    "Implementation": "convbench.registry",
    "bind_weights": "convbench.registry",
    "register": "convbench.registry",
    "ConvShape": "convbench.problem",
    "Pass": "convbench.problem",
    "Problem": "convbench.problem",
    "Semantics": "convbench.problem",
    "parse_descriptor": "convbench.descriptor",
    "print_descriptor": "convbench.descriptor",
    "ConvbenchError": "convbench.errors",
    "ProblemError": "convbench.errors",
    "Unavailable": "convbench.errors",
    "UnknownAlgorithm": "convbench.errors",
    "Unsupported": "convbench.errors",
    "UsageError": "convbench.errors",
}

__all__ = ["__version__", "algorithms", *_LAZY]


def __getattr__(name: str) -> Any:
    if name == "algorithms":  # a package that is also a function: `convbench.algorithms()`
        return importlib.import_module("convbench.algorithms")
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'convbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
