"""Architectures, MindSpore cells, initial weights, and the registry of named models."""
