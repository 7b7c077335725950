"""Continuous batching: scheduler, token choice, generation rules, constrained decoding. Knows no family."""
