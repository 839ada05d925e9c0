"""Where a forward keeps what its backward reads, other than in the memory that it computes in."""
