"""Decode steps and choices of tokens in fixed shapes, which a GPU captures once and replays.

Knows no family.
"""
