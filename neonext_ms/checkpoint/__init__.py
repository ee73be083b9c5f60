"""Weights in files of PyTorch, MindSpore and safetensors, read and written without PyTorch."""
