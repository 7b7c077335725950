"""Requests to answers: the core that every interface calls."""
