"""Large images in tiles: which grid covers an image, and how the answers about its parts merge.

Pure geometry and text. A view is the part of an image that a model saw: the whole image or a tile.
"""
