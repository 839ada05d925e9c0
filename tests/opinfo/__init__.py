"""Runs torch's own operator samples (OpInfo) under `dsjit.jit` and compares with eager."""
