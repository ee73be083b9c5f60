"""Training data: image sets, augmentation, loading."""
