"""Evaluates models on a dataset, and labels folders; most of it needs the extra `evaluate`."""
