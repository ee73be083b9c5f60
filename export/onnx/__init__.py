"""ONNX files: emitter, serialization, variants of the format."""
