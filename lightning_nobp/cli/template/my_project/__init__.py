"""A learning rule of my own."""
