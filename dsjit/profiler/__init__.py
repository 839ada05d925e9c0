"""Where the time of a Program goes."""
