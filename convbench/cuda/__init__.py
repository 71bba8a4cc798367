"""What runs on an NVIDIA GPU, as data: programs of kernel launches, products and transforms; known GPUs; compilation.

A CUDA algorithm says *what* is launched (`program.py`); `devices/cuda.py` enqueues that on a stream through CuPy, and
the tests run the same program on the CPU. So what is tested without a GPU is what runs on one.
"""
