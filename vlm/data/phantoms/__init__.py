"""Phantoms: drawn studies whose truth is known exactly."""
