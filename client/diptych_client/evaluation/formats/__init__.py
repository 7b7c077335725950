"""Formats of datasets: a module reads and writes one; reading.py and writing.py list them."""
