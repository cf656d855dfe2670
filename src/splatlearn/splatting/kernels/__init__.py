"""Numba kernels of the `cpu` backend, on plain arrays. Imported on the first render, no sooner."""
