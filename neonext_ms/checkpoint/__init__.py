"""Checkpoint files: PyTorch, MindSpore and safetensors, read and written without PyTorch."""
