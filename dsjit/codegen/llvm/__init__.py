"""The LLVM emitter: Kernel to textual LLVM IR to machine code, in process, with no compiler installed."""
