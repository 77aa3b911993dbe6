"""Scores that can be reproduced."""
