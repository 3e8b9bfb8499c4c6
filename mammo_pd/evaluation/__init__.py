"""Metrics of a table of predictions; no torch."""
