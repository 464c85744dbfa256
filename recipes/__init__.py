"""Shipped recipes: configurations of the command line, found by name."""
