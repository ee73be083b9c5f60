"""Training configurations: the schema, its description, and loading."""
