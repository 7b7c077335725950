"""The vision encoder and the cache of its image features."""
