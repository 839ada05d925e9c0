"""What a compiled Graph must compute, and which part of the compiler is to blame when it does not."""
