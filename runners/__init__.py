"""Tensors: a vision encoder and a decoder for each model, served by BentoML.

This package knows artifacts, prompts as token ids, batches and caches. It knows nothing of tasks or of HTTP.
"""
