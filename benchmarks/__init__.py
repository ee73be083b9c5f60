"""Measurements on this machine, and the device model, which predicts and measures nothing.

Measurements are ratios, medians over interleaved runs.
"""
