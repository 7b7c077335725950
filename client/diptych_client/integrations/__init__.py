"""The client inside other tools: agents (Model Context Protocol) and CVAT.

Each module needs an extra.
"""
