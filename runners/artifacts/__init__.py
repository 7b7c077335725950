"""Artifact folders: manifest, store, and the precision and device that a model runs in."""
