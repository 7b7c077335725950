"""Images of requests: fetched, and opened and decoded by `imaging` in bounded slots, threads and
processes.
"""
