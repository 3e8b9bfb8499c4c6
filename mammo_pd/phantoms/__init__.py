"""Synthetic mammograms, written as DICOM files."""
