"""Training data: vocabularies, true answers in each family's format, examples and batches."""
