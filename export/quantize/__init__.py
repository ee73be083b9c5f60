"""8-bit inference: calibration, scales, the quantized graph, proof that both forms of file agree, and what it cost."""
