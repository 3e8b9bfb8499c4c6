"""Scores and saliency maps from a trained run."""
