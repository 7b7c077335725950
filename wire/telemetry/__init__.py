"""Metrics and traces of the processes of one host."""
