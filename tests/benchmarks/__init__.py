"""Specifications of the benchmarks."""
