"""Formats of datasets: reading.py lists them, writing.py those that `annotate` writes."""
