"""Answers one task about millions of images without a server: Ray Data distributes shards to actors
with a model each.

Images are decoded, encoded, decoded into text and parsed by the code of the service. Nothing here
knows HTTP.
"""
