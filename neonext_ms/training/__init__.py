"""Training: configuration, data, the step, and runs."""
