"""Radscribe: radiology studies to findings, boxes and reports."""

__version__ = "0.1.0"
