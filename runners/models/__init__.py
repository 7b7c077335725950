"""The decoders of the two families, in torch: weights, layers and decode steps."""
