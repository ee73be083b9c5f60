"""Architectures, the MindSpore cells, and the registry of variants."""
