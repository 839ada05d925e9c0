"""Numbers that were taken out of tensors and stay in the graph."""
