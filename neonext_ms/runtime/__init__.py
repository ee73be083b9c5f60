"""Runtimes that execute exported models and checkpoints."""
