"""The board kit: everything that a board needs to test this package, and the report that comes back."""
