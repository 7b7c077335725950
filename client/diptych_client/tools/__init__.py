"""Tools on data sets: labelling, proofs, review and evaluation; most need the extra `evaluate`."""
