"""Requests: REST in, images decoded and checked, runners called, typed answers out.

This package composes tasks (language) and runners (tensors). It knows HTTP, limits, errors and metrics.
"""
