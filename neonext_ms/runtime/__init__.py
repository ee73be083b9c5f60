"""Runtimes: everything that can run a model file, one class each, and `open_runtime`, which chooses one."""
