"""The claims of the paper (arXiv 2403.11251), each measured on this host: `neonext-bench claims NAME`."""
