"""Offline: checkpoint -> ONNX vision encoder, decoder weights and manifest, kept in the BentoML model store.

Nothing here runs in the service. `python -m export --help` is the way in.
"""
