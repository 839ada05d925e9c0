"""Measures dsjit against eager PyTorch and torch.compile: `python -m benchmarks`."""
