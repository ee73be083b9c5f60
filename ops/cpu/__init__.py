"""C++ kernels for float32 on the CPU: whole blocks in training, their layers one by one, AdamW.

They are compiled on first use (`library`) and called through `ops.Custom` (`operators`). MindSpore's own operations
take their place if the kernels cannot be built or NEONEXT_CPU_OPS=0 is set.
"""
