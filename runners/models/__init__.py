"""The decoders of the two families, in torch."""
