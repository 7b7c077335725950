"""Artifact folders: manifest, store, and the precision and device of each part of a model."""
