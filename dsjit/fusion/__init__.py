"""Graph to fused groups to Kernels."""
