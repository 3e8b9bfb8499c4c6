"""Figures from a table of predictions; knows no torch."""
