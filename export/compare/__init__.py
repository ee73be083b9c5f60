"""Compare two representations of a network, layer by layer."""
