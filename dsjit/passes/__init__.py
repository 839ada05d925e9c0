"""Graph to Graph: pure functions, one a file, listed in order in `pipeline`."""
