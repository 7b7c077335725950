"""The core of all interfaces: validates a request, runs models, records the outcome."""
