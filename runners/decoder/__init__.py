"""Continuous batching: scheduler, batch, sequences, engines. Knows no family."""
