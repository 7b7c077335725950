"""REST and gRPC: one attempt of a call, from a request to a result or a `DiptychError`.

messages.py has the calls and REST; grpc_transports.py has gRPC.
vision_pb2.py is a link to the service's generated code: both have the same descriptor, so that one
process can load both.
"""
