"""The micro-kernels, one family a file. Each builder takes a Target and gives a compiled `Kernel`, made once."""
