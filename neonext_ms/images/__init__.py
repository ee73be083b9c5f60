"""Images and class folders, and how images become model inputs."""
