"""Kernels that no loop nest of scalar statements describes: what they compute, and how they cut up their work."""
