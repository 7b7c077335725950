"""gRPC: the boundary of every method, and `diptych.v1.Vision`."""
