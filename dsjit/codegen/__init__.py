"""From Kernels and library calls to a Program that runs."""
