"""Vector operations as LLVM, with portable fallbacks."""
