"""The protocol between gateway and runner: messages, pixels, and the ASGI middleware of a
runner.
"""
