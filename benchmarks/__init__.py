"""Measurements: every module is a script that prints ratios, medians over interleaved runs."""
