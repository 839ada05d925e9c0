"""Where Python looks at what tensors hold: the run is cut there, and follows outcomes."""
