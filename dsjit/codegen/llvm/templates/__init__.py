"""The LLVM IR of templates, each in a file of its own."""
