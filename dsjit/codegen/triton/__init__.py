"""Kernels in Triton: for GPUs, and for the interpreter that comes with Triton."""
