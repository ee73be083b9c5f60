"""C++ kernels for float32 on the CPU: GELU, NeoCell, linear layers over channels, BatchNorm's gradients.

They are compiled on first use (`library`) and called through `ops.Custom` (`operators`). Where they cannot be had, and
with NEONEXT_CPU_OPS=0, MindSpore's own operations do the same.
"""
