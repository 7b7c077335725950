"""An image file becomes the pixels of a model's input, for serving, tuning and the export's checks
alike.

It needs Pillow and blake3 only, and knows neither requests nor models.
"""
