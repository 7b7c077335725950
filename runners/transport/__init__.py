"""The HTTP API of a runner and its ASGI middleware."""
