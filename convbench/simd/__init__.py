"""Vector kernels for the CPU without a compiler: micro-kernels in LLVM vector IR, loops around them in Numba.

`README.md` beside this file leads from one micro-kernel in Python to its assembly. In short:

target.py    what the host's vector unit looks like (AVX-512, AVX2, NEON): lanes, registers, masks
emit.py      `Emitter`: loads, stores, masks, FMA, broadcasts and loops, written as LLVM IR
compiler.py  `Kernel`: one IR function -> machine code, kept on disk under the hash of its IR
kernels/     the micro-kernels: brgemm, constant-matrix transforms, transposes, FFT butterflies, popcount, dot products
driver.py    Numba functions that call kernels by address, and the parallel loop
cache.py     the folder in which machine code is kept

Algorithms import this lazily, inside prepare(): Numba and llvmlite take half a second to load.
"""
