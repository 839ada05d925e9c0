"""What users call: `jit`, `explain`, `stats`; and the pipeline from a recorded Graph to a Program."""
