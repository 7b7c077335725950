"""The vision encoder in ONNX Runtime, and the cache of its image features."""
