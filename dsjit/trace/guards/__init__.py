"""Whether a later call may run the program: the facts, made quick to check."""
