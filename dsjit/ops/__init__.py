"""What dsjit knows of each ATen op: one declarative table."""
