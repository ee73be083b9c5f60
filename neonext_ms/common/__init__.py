"""Code that every room uses: errors, files, signals, text, external tools, the frame of a command."""
