"""Images of requests: fetched, opened and decoded in bounded threads and processes."""
