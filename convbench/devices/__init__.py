"""Devices: array namespace, aligned memory, clock, synchronisation, cache flush."""
