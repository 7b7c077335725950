"""An image file becomes the pixels of a model's input, for serving, tuning and checks.

It needs Pillow and blake3 only, and knows neither requests nor models.
"""
