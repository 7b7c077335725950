"""Runners: one BentoML service per model, with vision encoder, features cache and decoder.

Knows artifacts, token ids, tensors, batches and caches; no tasks.
"""
