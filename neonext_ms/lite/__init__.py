"""MindSpore Lite on this machine: its package from PyPI, our drivers for it, and the process that they run in."""
