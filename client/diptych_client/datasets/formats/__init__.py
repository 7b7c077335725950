"""Readers and writers of datasets, which reading.py and writing.py list."""
