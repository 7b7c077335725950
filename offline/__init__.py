"""Answers one task about millions of images without a server, on Ray Data.

Images are decoded, encoded, decoded into text and parsed by the code of the service. Nothing here
knows HTTP.
"""
