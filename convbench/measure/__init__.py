"""Measuring: take callables and a clock, give back raw samples (`sampler`), and say when to stop (`stopping`)."""
