"""Image files, class folders, and the preprocessing that turns images into model inputs."""
