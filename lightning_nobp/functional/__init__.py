"""Pure torch functions: the mathematics, one file a topic."""
