"""Constrained decoding and the checks on what it wrote."""
