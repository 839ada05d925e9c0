"""The programs that are measured, one file a family; `catalog.WORKLOADS` lists them."""
