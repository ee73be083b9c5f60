"""The command-line programs of the models' room; each module is one command with a `main`."""
