"""The key-value cache: slots of fixed size, which accept, roll back, reorder, move and free.

Knows shapes and lengths; no family, no requests, no scheduling.
"""
