"""Continuous batching: scheduler, batch, sequences, beams, drafts, key-value cache.

Knows no family.
"""
