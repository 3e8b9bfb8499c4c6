"""Speed and memory: measured and estimated."""
