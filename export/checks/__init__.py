"""Checks of an export: parity with transformers in float32, and the loss at every other
precision.
"""
