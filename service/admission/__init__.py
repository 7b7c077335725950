"""Admission of requests: API keys, quotas, the fair queue, load and drain."""
