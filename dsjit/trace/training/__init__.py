"""Gradients, and what optimizers do with them, as part of the record."""
