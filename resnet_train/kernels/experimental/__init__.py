"""Kernels whose speed has not been seen on their hardware: reachable by name, never chosen by ``auto``."""
