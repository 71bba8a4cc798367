"""The text of kernels/cuda/include/winograd_matrices.cuh, out of the exact matrices of `_cook_toom.py`.

    python tests/cuda_on_cpu/winograd_matrices.py

writes the file again; test_winograd_nonfused.py compares it with what stands there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from convbench.algorithms._cook_toom import Matrix, cook_toom

PATH = Path(__file__).parents[2] / "kernels" / "cuda" / "include" / "winograd_matrices.cuh"
#: (TILE, TAPS) of the rows.
SIZES = ((2, 3), (4, 3), (6, 3), (4, 5))
_HEAD = """\
// Cook-Toom matrices of Winograd convolution, TILE x TILE results and TAPS x TAPS filters, each element rounded once.
// Written by tests/cuda_on_cpu/winograd_matrices.py out of convbench/algorithms/_cook_toom.py (which says whose points
// they are); a test compares. Lavin and Gray, arXiv 1509.09308, section 4, ALPHA = TILE + TAPS - 1 points an axis:
//   forward, backward data, F(TILE, TAPS):  Y = AT [(G w G^T) * (BT x BT^T)] AT^T
//   backward weights, F(TAPS, TILE):        dW = GRADIENT_AT [(GRADIENT_G dy GRADIENT_G^T) * (BT x BT^T)] GRADIENT_AT^T
#pragma once
"""


def literal(value: float) -> str:
    """A float as C writes it, with the fewest digits that give the same float32."""
    text = np.format_float_positional(np.float32(value), unique=True, trim="0")
    return f"{text}f"


def macro(name: str, matrix: Matrix) -> str:
    """One matrix as an initialiser."""
    rows = ["{" + ", ".join(literal(float(value)) for value in row) + "}" for row in matrix]
    body = ", \\\n    ".join(rows)
    return f"#define WINOGRAD_{name} {{ \\\n    {body}}}"


def render() -> str:
    """The whole file."""
    text = _HEAD
    for number, (tile, taps) in enumerate(SIZES):
        forward, weights = cook_toom(tile, taps), cook_toom(taps, tile)
        if forward.bt != weights.bt:
            raise ValueError(f"F({tile},{taps}) and F({taps},{tile}) differ in B^T: x would need two transforms")
        text += f"\n#{'el' if number else ''}if TILE == {tile} && TAPS == {taps}\n"
        matrices = {"BT": forward.bt, "G": forward.g, "AT": forward.at,
                    "GRADIENT_G": weights.g, "GRADIENT_AT": weights.at}  # fmt: skip
        text += "\n".join(macro(name, matrix) for name, matrix in matrices.items()) + "\n"
    return text + "\n#else\n#error no Winograd transform for this TILE and TAPS\n#endif\n"


if __name__ == "__main__":
    PATH.write_text(render())
