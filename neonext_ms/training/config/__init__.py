"""Training configurations: schema, loading, description of keys."""
