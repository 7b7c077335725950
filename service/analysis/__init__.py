"""Many questions about one image in one request: steps that refer to each other's boxes."""
