"""The core that all interfaces call: validates a request, runs it on one or several models, records
its outcome.
"""
