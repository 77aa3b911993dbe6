"""The figure, one idea a file."""
