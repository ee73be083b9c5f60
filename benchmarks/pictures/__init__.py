"""Pictures of the paper, drawn by `neonext-plot --figure`: its geometry, matrices, published figures, and ablation.

Each module has `draw(plt, args)`, which returns a figure and facts for `--json`.
"""
