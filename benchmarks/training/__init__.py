"""Training steps: forward and backward, or whole steps, in time, in bytes, and in what they compute."""
