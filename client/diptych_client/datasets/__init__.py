"""Data sets: images with labels, their formats, and the files that a run reads and writes."""
